//! How commands reach the controller, and how they end.

use std::{
    future::Future,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    controller::DEFAULT_SOCKET,
    coordinator::{MigrationView, Timestamp},
    proto::{self, v1, v1::control_service_client::ControlServiceClient},
};

/// A controller on this machine answers at once; one elsewhere within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Options of every command that asks the controller.
#[derive(Debug, clap::Args)]
pub(super) struct ClientArgs {
    /// Where the controller is
    #[arg(long, value_name = "unix:///PATH|http://HOST:PORT", env = "NATMIG_CONTROLLER", global = true,
          default_value_t = default_controller())]
    controller: String,

    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub(super) json: bool,
}

fn default_controller() -> String {
    format!("unix://{DEFAULT_SOCKET}")
}

/// A connection to the controller.
pub(super) type Client = ControlServiceClient<Channel>;

/// Why a command ends without success; each has an exit code of its own.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The controller refuses as things are. Exit code 3.
    #[error("{0}")]
    Refused(String),
    /// The migration was aborted. Exit code 4.
    #[error("{0}")]
    Aborted(String),
    /// It takes longer than allowed. Exit code 5.
    #[error("{0}")]
    Timeout(String),
    /// Anything else. Exit code 1.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::FailedPrecondition | Code::ResourceExhausted | Code::AlreadyExists => {
                Self::Refused(message)
            }
            // A connection that breaks has no code of its own.
            Code::Unavailable | Code::Unknown | Code::Cancelled => Self::Other(anyhow::anyhow!(
                "the controller went away ({message}); whether it still did what was asked is not \
                 known: see whether it runs, and look before asking again"
            )),
            Code::Unimplemented => Self::Other(anyhow::anyhow!(
                "the controller does not know this command: it runs another version of natmig"
            )),
            Code::Ok
            | Code::InvalidArgument
            | Code::DeadlineExceeded
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Aborted
            | Code::OutOfRange
            | Code::Internal
            | Code::DataLoss
            | Code::Unauthenticated => Self::Other(anyhow::anyhow!("{message}")),
        }
    }
}

impl From<proto::Malformed> for Failure {
    fn from(error: proto::Malformed) -> Self {
        Self::Other(anyhow::Error::new(error).context(
            "the controller's answer cannot be understood; is it another version of natmig?",
        ))
    }
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Other(_) => 1,
            Self::Refused(_) => 3,
            Self::Aborted(_) => 4,
            Self::Timeout(_) => 5,
        }
    }
}

impl ClientArgs {
    /// Connects, runs the command, and turns its outcome into an exit code.
    pub(super) fn run<F, Fut>(&self, command: F) -> anyhow::Result<ExitCode>
    where
        F: FnOnce(Client) -> Fut,
        Fut: Future<Output = Result<(), Failure>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let outcome = runtime.block_on(async {
            let client = self.connect().await?;
            command(client).await
        });
        Ok(match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                let code = failure.exit_code();
                eprintln!("natmig: {:#}", anyhow::Error::from(failure));
                ExitCode::from(code)
            }
        })
    }

    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        let url = &self.controller;
        let known = ["unix://", "http://"]
            .iter()
            .any(|scheme| url.starts_with(scheme));
        let endpoint = Endpoint::from_shared(url.clone()).ok().filter(|_| known);
        let channel = endpoint
            .with_context(|| {
                format!("{url}: not a controller; write unix:///PATH or http://HOST:PORT")
            })?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(proto::KEEPALIVE_INTERVAL)
            .keep_alive_timeout(proto::KEEPALIVE_TIMEOUT)
            .initial_stream_window_size(proto::WINDOW)
            .initial_connection_window_size(proto::WINDOW)
            .connect()
            .await
            .map_err(|error| {
                let error = anyhow::Error::new(error);
                anyhow::anyhow!(
                    "no controller answers on {url} ({}); start one with `natmig controller \
                     --config FILE`, or say where it is with --controller or NATMIG_CONTROLLER",
                    error.root_cause()
                )
            })?;
        Ok(ControlServiceClient::new(channel)
            .max_decoding_message_size(proto::MESSAGE_LIMIT)
            .max_encoding_message_size(proto::MESSAGE_LIMIT))
    }
}

/// Prints a value as JSON: one object or array, readable.
pub(super) fn print_json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Reports what was done to something.
pub(super) fn print_done(json: bool, done: &str, what: &str) -> anyhow::Result<()> {
    if json {
        return print_json(&serde_json::json!({ "done": done, "what": what }));
    }
    println!("{done}: {what}");
    Ok(())
}

/// An empty table in the house's style.
pub(super) fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_header(header.to_vec());
    table
}

/// A value for a table's cell.
pub(super) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// How long ago something was, for people.
pub(super) fn age(at: Timestamp) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = Duration::from_nanos(Timestamp(0).after(now).since(at)).as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

/// Exit code for arguments that make no sense together.
pub(super) const USAGE: u8 = 2;

/// The migration of an answer.
pub(super) fn migration(wire: Option<v1::Migration>) -> Result<MigrationView, proto::Malformed> {
    wire.ok_or_else(|| proto::Malformed::new("migration", "is missing"))?
        .try_into()
}
