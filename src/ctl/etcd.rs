//! How etcd is reached: options of a manager that runs on it, and of whoever sends one there.

use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct EtcdArgs {
    /// Put before every key in etcd, as /lab
    #[arg(long, env = "SYMPHONY_ETCD_PREFIX", default_value = "", hide_default_value = true)]
    pub etcd_prefix: String,
    /// The authority that signed etcd's certificate, for https:// endpoints (PEM, on the manager's host)
    #[arg(long, env = "SYMPHONY_ETCD_CA", value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// The manager's certificate towards etcd (PEM, on the manager's host)
    #[arg(long, env = "SYMPHONY_ETCD_CERT", value_name = "FILE", requires = "etcd_key")]
    pub etcd_cert: Option<PathBuf>,
    /// The key of that certificate (PEM, on the manager's host)
    #[arg(long, env = "SYMPHONY_ETCD_KEY", value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
    /// The user towards etcd; its password comes from a file or from the manager's $SYMPHONY_ETCD_PASSWORD
    #[arg(long, env = "SYMPHONY_ETCD_USER", value_name = "NAME")]
    pub etcd_user: Option<String>,
    /// Holds the password of that user (on the manager's host)
    #[arg(long, env = "SYMPHONY_ETCD_PASSWORD_FILE", value_name = "FILE")]
    pub etcd_password_file: Option<PathBuf>,
}
