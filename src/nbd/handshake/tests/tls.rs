//! `NBD_OPT_STARTTLS` in each mode of a server, and those who try to get around it.

use super::*;

const WHY: &str = "not from this host";

fn demanded() -> Encryption {
    Encryption::Demanded(WHY.into())
}

fn go() -> Vec<u8> {
    option(NBD_OPT_GO, &info("disk", &[]))
}

/// A connection on which the TLS handshake is taken for done whenever it begins.
struct Talk {
    handshake: Handshake,
    output: Vec<u8>,
}

impl Talk {
    fn new(encryption: Encryption) -> Self {
        let mut output = Vec::new();
        let handshake = Handshake::new(Policy::Admit, encryption, &mut output);
        let mut talk = Self { handshake, output };
        assert_eq!(talk.say(&fixed()).1, Progress::Continue);
        talk
    }

    fn say(&mut self, input: &[u8]) -> (usize, Progress<String>) {
        self.handshake.receive(input, &Shelf, &mut self.output)
    }

    /// What one option is answered with.
    fn asks(&mut self, input: &[u8]) -> (Vec<u32>, Progress<String>) {
        let before = replies(&self.output).len();
        let (used, progress) = self.say(input);
        assert_eq!(used, input.len());
        (replies(&self.output).split_off(before).iter().map(|reply| reply.1).collect(), progress)
    }

    fn starts_tls(&mut self) {
        assert_eq!(self.asks(&option(NBD_OPT_STARTTLS, &[])), (vec![NBD_REP_ACK], Progress::StartTls));
        self.handshake.secured(Policy::Admit);
    }
}

#[test]
fn a_server_that_demands_tls_answers_nothing_else_before() {
    let mut talk = Talk::new(demanded());
    let long = option(NBD_OPT_INFO, &vec![0; MAX_OPTION as usize + 1]);
    for asked in [4711, NBD_OPT_LIST, NBD_OPT_STRUCTURED_REPLY, NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT] {
        assert_eq!(talk.asks(&option(asked, b"x")).0, [NBD_REP_ERR_TLS_REQD], "{asked}");
    }
    for asked in [NBD_OPT_INFO, NBD_OPT_GO] {
        for name in ["disk", "nothing"] {
            let answer = talk.asks(&option(asked, &info(name, &[])));
            assert_eq!(answer, (vec![NBD_REP_ERR_TLS_REQD], Progress::Continue));
        }
    }
    let told = replies(&talk.output).pop().expect("a reply");
    assert_eq!(told.2, WHY.as_bytes());
    assert_eq!(talk.say(&long), (OPTION_HEADER, Progress::Continue));
    assert_eq!(talk.asks(&long[OPTION_HEADER..]).0, [NBD_REP_ERR_TLS_REQD], "too long to be looked at");
    talk.starts_tls();
    assert!(matches!(talk.asks(&go()).1, Progress::Enter(_)));
}

#[test]
fn a_client_that_is_refused_tls_and_goes_on_in_plain_gets_nowhere() {
    let mut talk = Talk::new(demanded());
    assert_eq!(talk.asks(&option(NBD_OPT_STARTTLS, b"x")).0, [NBD_REP_ERR_INVALID]);
    assert_eq!(talk.asks(&go()), (vec![NBD_REP_ERR_TLS_REQD], Progress::Continue));
    assert_eq!(talk.asks(&option(NBD_OPT_EXPORT_NAME, b"disk")), (vec![], Progress::Close));
    let mut talk = Talk::new(demanded());
    assert_eq!(talk.asks(&option(NBD_OPT_ABORT, &[])), (vec![NBD_REP_ACK], Progress::Close));
}

#[test]
fn a_client_without_the_fixed_handshake_gets_no_tls_and_no_export() {
    for asked in [option(NBD_OPT_STARTTLS, &[]), option(NBD_OPT_EXPORT_NAME, b"disk")] {
        let mut output = Vec::new();
        let mut handshake = Handshake::new(Policy::Admit, demanded(), &mut output);
        assert_eq!(handshake.receive(&flags(0), &Shelf, &mut output).1, Progress::Continue);
        assert_eq!(handshake.receive(&asked, &Shelf, &mut output).1, Progress::Close);
        assert!(replies(&output).is_empty());
    }
}

#[test]
fn a_server_that_offers_tls_serves_both_ways() {
    assert!(matches!(Talk::new(Encryption::Offered).asks(&go()).1, Progress::Enter(_)));
    let mut talk = Talk::new(Encryption::Offered);
    talk.starts_tls();
    assert!(matches!(talk.asks(&go()).1, Progress::Enter(_)));
}

#[test]
fn a_server_without_a_certificate_says_so() {
    let mut talk = Talk::new(Encryption::Refused("no certificate yet".into()));
    assert_eq!(talk.asks(&option(NBD_OPT_STARTTLS, &[])), (vec![NBD_REP_ERR_POLICY], Progress::Continue));
    assert!(matches!(talk.asks(&go()).1, Progress::Enter(_)));
}

#[test]
fn tls_begins_once_and_without_data() {
    for encryption in [demanded(), Encryption::Offered] {
        let mut talk = Talk::new(encryption);
        assert_eq!(talk.asks(&option(NBD_OPT_STARTTLS, b"x")), (vec![NBD_REP_ERR_INVALID], Progress::Continue));
        talk.starts_tls();
        assert_eq!(talk.asks(&option(NBD_OPT_STARTTLS, &[])), (vec![NBD_REP_ERR_INVALID], Progress::Continue));
        assert!(matches!(talk.asks(&go()).1, Progress::Enter(_)));
    }
}

#[test]
fn bytes_injected_behind_starttls_in_plain_are_never_obeyed() {
    for encryption in [demanded(), Encryption::Offered] {
        let mut talk = Talk::new(encryption.clone());
        let input = [option(NBD_OPT_STARTTLS, &[]), go()].concat();
        assert_eq!(talk.say(&input).1, Progress::Close);
        assert!(replies(&talk.output).is_empty(), "not even consent");
        // The same bytes in two pieces: the second is not looked at.
        let mut talk = Talk::new(encryption);
        assert_eq!(talk.asks(&option(NBD_OPT_STARTTLS, &[])).1, Progress::StartTls);
        assert_eq!(talk.say(&go()), (0, Progress::Close));
    }
}

#[test]
fn what_was_settled_in_plain_is_forgotten() {
    for settled in [NBD_OPT_STRUCTURED_REPLY, NBD_OPT_EXTENDED_HEADERS] {
        let set = option(NBD_OPT_SET_META_CONTEXT, &contexts("disk", &[BASE_ALLOCATION, ALLOCATION_DEPTH]));
        let upgraded = || {
            let mut talk = Talk::new(Encryption::Offered);
            assert_eq!(talk.asks(&option(settled, &[])).0, [NBD_REP_ACK]);
            assert!(talk.asks(&set).0.ends_with(&[NBD_REP_ACK]));
            talk.starts_tls();
            talk
        };
        let Progress::Enter(negotiated) = upgraded().asks(&go()).1 else { panic!("no entry") };
        assert_eq!((negotiated.headers, negotiated.contexts), (Headers::Compact, Contexts::default()));
        let mut talk = upgraded();
        assert_eq!(talk.asks(&set).0, [NBD_REP_ERR_INVALID], "structured replies come first, again");
        assert_eq!(talk.asks(&option(NBD_OPT_STRUCTURED_REPLY, &[])).0, [NBD_REP_ACK], "nothing is extended");
        let Progress::Enter(negotiated) = talk.asks(&go()).1 else { panic!("no entry") };
        assert_eq!((negotiated.headers, negotiated.contexts), (Headers::Structured, Contexts::default()));
    }
}

#[test]
fn whoever_is_refused_is_refused_tls_and_after_tls() {
    let mut output = Vec::new();
    let mut handshake = Handshake::new(Policy::Refuse("too many".into()), demanded(), &mut output);
    let input = [fixed(), option(NBD_OPT_STARTTLS, &[])].concat();
    let (used, _) = handshake.receive(&input, &Shelf, &mut output);
    handshake.receive(&input[used..], &Shelf, &mut output);
    assert_eq!(replies(&output), [(NBD_OPT_STARTTLS, NBD_REP_ERR_POLICY, b"too many".to_vec())]);

    let mut talk = Talk::new(demanded());
    talk.starts_tls();
    talk.handshake.set_policy(Policy::Refuse("a manager's certificate".into()));
    for asked in [go(), option(NBD_OPT_LIST, &[]), option(NBD_OPT_STARTTLS, &[])] {
        assert_eq!(talk.asks(&asked).0, [NBD_REP_ERR_POLICY]);
    }
}

#[test]
fn a_flood_of_options_ends_the_same_before_and_after_tls() {
    let mut talk = Talk::new(demanded());
    let flood = |talk: &mut Talk, count| {
        for _ in 0..count {
            assert_eq!(talk.say(&option(NBD_OPT_LIST, &[])).1, Progress::Continue);
        }
        talk.output.truncate(18);
    };
    flood(&mut talk, MAX_OPTIONS / 2);
    talk.starts_tls();
    flood(&mut talk, MAX_OPTIONS / 2 - 1);
    assert_eq!(talk.say(&go()).1, Progress::Close);
}
