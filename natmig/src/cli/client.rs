//! How commands reach the controller, and how they end.

use std::{
    future::Future,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use tonic::{Code, Status, transport::Channel};

use crate::{
    causes::with_causes,
    controller::DEFAULT_SOCKET,
    coordinator::{MigrationView, Timestamp},
    pki::DEFAULT_DIRECTORY,
    proto::{self, StandingBy, v1, v1::control_service_client::ControlServiceClient},
    tls::{CredentialFiles, Credentials, DialError, dial},
};

/// A controller on this machine answers at once; one elsewhere within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait while controllers answer but none leads.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(15);

/// How long to wait before they are asked again.
const ELECTION_PAUSE: Duration = Duration::from_millis(100);

/// Options of every command that asks the controller.
#[derive(Debug, clap::Args)]
pub(super) struct ClientArgs {
    /// Where the controller is; of several, the one that leads is found [repeatable, or with commas]
    #[arg(long, value_name = "unix:///PATH|https://HOST:PORT", env = "NATMIG_CONTROLLER", global = true,
          value_delimiter = ',', default_values_t = [default_controller()])]
    controller: Vec<String>,

    /// Authority that signed the controller's certificate [default: `ca.pem` in `$NATMIG_PKI`, or in
    /// /etc/natmig/pki]
    #[arg(long, value_name = "FILE", env = "NATMIG_CA", global = true)]
    ca: Option<PathBuf>,

    /// Certificate to show to the controller [default: client.pem there]
    #[arg(long, value_name = "FILE", env = "NATMIG_CERTIFICATE", global = true)]
    certificate: Option<PathBuf>,

    /// Key of that certificate [default: beside it, with the ending .key]
    #[arg(long, value_name = "FILE", env = "NATMIG_KEY", global = true)]
    key: Option<PathBuf>,

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
        if StandingBy::of(&status).is_some() {
            return Self::Other(anyhow::anyhow!("{message}; nothing was done"));
        }
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
                let error = anyhow::Error::from(failure);
                eprintln!("natmig: {}", with_causes(error.as_ref()));
                ExitCode::from(code)
            }
        })
    }

    /// The addresses that were given.
    pub(super) fn controllers(&self) -> &[String] {
        &self.controller
    }

    fn credential_files(&self) -> CredentialFiles {
        let directory = std::env::var_os("NATMIG_PKI")
            .map_or_else(|| PathBuf::from(DEFAULT_DIRECTORY), PathBuf::from);
        let CredentialFiles {
            ca,
            certificate,
            key: _,
        } = CredentialFiles::in_directory(&directory, "client");
        let certificate = self.certificate.clone().unwrap_or(certificate);
        let beside = certificate.with_extension("key");
        CredentialFiles {
            ca: self.ca.clone().unwrap_or(ca),
            key: self.key.clone().unwrap_or(beside),
            certificate,
        }
    }

    /// What is shown to the controller at `url`, if it is dialled over TLS.
    fn credentials(&self, url: &str) -> anyhow::Result<Option<Credentials>> {
        if !url.starts_with("https://") {
            return Ok(None);
        }
        let credentials = Credentials::load(&self.credential_files()).with_context(|| {
            format!(
                "the certificate to show to the controller at {url} cannot be used; see \
                 --certificate and `natmig pki issue`"
            )
        })?;
        Ok(Some(credentials))
    }

    /// A connection to one controller.
    pub(super) async fn connect_to(&self, url: &str) -> anyhow::Result<Client> {
        open(url, self.credentials(url)?.as_ref()).await
    }

    /// A connection to the controller at `url` if it leads, or to the one that it names as leader;
    /// none if neither leads.
    async fn connect_to_leader(&self, url: &str) -> anyhow::Result<Option<Client>> {
        let mut client = self.connect_to(url).await?;
        let Some(status) = controller_status(&mut client).await? else {
            return Ok(Some(client));
        };
        if status.leads {
            return Ok(Some(client));
        }
        if status.leader_address.is_empty() {
            return Ok(None);
        }
        let credentials = self.credentials(&status.leader_address)?;
        // The one that is named may have died: whoever stands by does not know yet.
        let Ok(mut client) = open(&status.leader_address, credentials.as_ref()).await else {
            return Ok(None);
        };
        let leads = controller_status(&mut client)
            .await
            .is_ok_and(|status| status.is_none_or(|status| status.leads));
        Ok(leads.then_some(client))
    }

    /// Connects to the controller that leads. Where an election is going on, waits for its end.
    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        let deadline = Instant::now() + ELECTION_TIMEOUT;
        loop {
            let (mut standing_by, mut problem) = (false, None);
            for url in &self.controller {
                match self.connect_to_leader(url).await {
                    Ok(Some(client)) => return Ok(client),
                    Ok(None) => standing_by = true,
                    Err(error) => problem = problem.or(Some(error)),
                }
            }
            if let Some(problem) = problem.filter(|_| !standing_by) {
                return Err(problem);
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "no controller leads for {} s: see `natmig controller status`, and whether most of \
                 etcd's members run",
                ELECTION_TIMEOUT.as_secs()
            );
            tokio::time::sleep(ELECTION_PAUSE).await;
        }
    }
}

/// What a controller says of itself; `None` if it does not know the question.
pub(super) async fn controller_status(
    client: &mut Client,
) -> anyhow::Result<Option<v1::GetControllerResponse>> {
    let answer = tokio::time::timeout(
        CONNECT_TIMEOUT,
        client.get_controller(v1::GetControllerRequest {}),
    )
    .await
    .context("the controller does not answer")?;
    match answer {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        Err(status) => Err(anyhow::Error::from(Failure::from(status))),
    }
}

async fn open(url: &str, credentials: Option<&Credentials>) -> anyhow::Result<Client> {
    let channel = dial(url, CONNECT_TIMEOUT, credentials)
        .await
        .map_err(|error| match error {
            DialError::Connect(problem) => anyhow::anyhow!(
                "no controller can be asked on {url}: {problem}; start one with `natmig \
                 controller --config FILE`, or say where it is with --controller or \
                 NATMIG_CONTROLLER"
            ),
            error @ (DialError::Url(_) | DialError::NoCredentials(_)) => error.into(),
        })?;
    Ok(ControlServiceClient::new(channel)
        .max_decoding_message_size(proto::MESSAGE_LIMIT)
        .max_encoding_message_size(proto::MESSAGE_LIMIT))
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
