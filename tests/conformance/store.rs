//! What every store promises, asked of each: the embedded one, and a real etcd.

mod cases;
mod embedded;
mod etcd;
mod etcd_access;
mod leases;
mod model;
mod subject;

use subject::Subject;

/// One test per case and store.
macro_rules! conformance {
    ($($module:ident: $($case:ident),+ $(,)?);+ $(;)?) => {
        mod on_embedded {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$module::$case(&super::Subject::embedded()).await;
                }
            )+)+
        }

        mod on_etcd {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$module::$case(&super::Subject::etcd().await).await;
                }
            )+)+
        }
    };
}

conformance! {
    cases:
        comparisons_decide_whether_a_transaction_happens,
        a_conflict_leaves_nothing_behind,
        a_transaction_happens_whole_at_one_revision,
        revisions_grow_with_changes_and_only_with_them,
        a_listing_is_ordered_and_exact_about_its_prefix,
        a_long_listing_is_one_snapshot_while_writers_race,
        a_watch_misses_no_revision_while_writers_race,
        a_batch_is_what_one_commit_did_under_the_prefix,
        a_watch_goes_on_from_a_listing_without_a_gap,
        a_watch_from_the_future_is_told_to_list_again,
        broken_rules_are_refused,
        concurrent_counters_lose_nothing;
    leases:
        a_lease_that_runs_out_takes_its_keys_along,
        a_lease_that_is_kept_alive_stays,
        a_revoked_lease_takes_its_keys_along_in_one_batch,
        a_put_without_the_lease_detaches_and_one_with_another_moves,
        a_deleted_key_is_the_lease_s_no_more,
        a_put_with_a_gone_lease_writes_nothing;
}

#[test]
fn any_sequence_of_requests_on_embedded_does_what_the_model_does() {
    model::compare_with_model(256, async || Subject::embedded());
}

#[test]
fn any_sequence_of_requests_on_etcd_does_what_the_model_does() {
    model::compare_with_model(24, Subject::etcd);
}

#[tokio::test]
async fn forgotten_history_on_embedded_says_so() {
    let subject = Subject::embedded();
    cases::forgotten_history_says_so(&subject).await;
}

#[tokio::test]
async fn forgotten_history_on_etcd_says_so() {
    let subject = Subject::etcd_of_its_own().await;
    cases::forgotten_history_says_so(&subject).await;
}
