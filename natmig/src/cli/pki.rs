//! `natmig pki`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

use clap::{ArgAction, ValueEnum};
use serde_json::json;

use super::output;
use crate::pki::{
    Authority, Certificate, DEFAULT_DIRECTORY, Existing, PkiError, Request, Role, Validity,
    rfc3339, write_private, write_public,
};

/// Make certificates for controllers, agents and people
///
/// Every side of every TCP connection shows a certificate, which says who it is: the agent of one
/// router, a controller, an operator, or someone who may only look. Whoever has the authority's key
/// (ca.key) decides that: keep it off the routers.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig pki init\n  \
    natmig pki issue controller ctl1 --address 198.18.0.1 --address ctl1.example.net\n  \
    natmig pki issue agent edge1            # edge1: the router's name in the topology\n  \
    natmig pki issue operator alice --days 90\n  \
    natmig pki issue read-only grafana\n  \
    natmig pki show agent-edge1.pem\n  \
    natmig pki renew agent-edge1.pem        # daemons read it again by themselves")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,

    /// Where the authority is, and where certificates are written
    #[arg(long, value_name = "DIRECTORY", env = "NATMIG_PKI", global = true,
          default_value = DEFAULT_DIRECTORY)]
    directory: PathBuf,

    /// Print JSON, for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make the authority that signs all certificates: ca.pem and ca.key
    Init {
        /// Its name, for people
        #[arg(long, default_value = "natmig authority")]
        name: String,
        /// For how many days it is valid
        #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
        /// Replace an authority that is there: all its certificates become worthless
        #[arg(long)]
        force: bool,
    },
    /// Make a key and a certificate for it
    Issue {
        /// What its holder may do
        role: RoleKind,
        /// Who its holder is: an agent's router, or a name for people
        name: String,
        /// A name or address by which it is dialled; controllers need all of theirs
        #[arg(long = "address", value_name = "NAME|ADDRESS", action = ArgAction::Append)]
        addresses: Vec<String>,
        /// For how many days it is valid
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
        /// Beginning of the files' names, instead of ROLE-NAME
        #[arg(long, value_name = "STEM")]
        output: Option<String>,
        /// Replace files that are there
        #[arg(long)]
        force: bool,
    },
    /// Make a certificate of the same role and names with later dates
    ///
    /// The authority that signed it signs again: --directory says where that is. The key stays as it
    /// is, so that one file is replaced at once. Daemons read it again by themselves.
    Renew {
        /// The certificate; its key lies beside it
        certificate: PathBuf,
        /// For how many days it is valid
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
        /// Make a new key as well, as after a theft
        #[arg(long)]
        new_key: bool,
    },
    /// Show whose certificates these are and how long they are valid
    ///
    /// Exit code 3 if one of them is not valid at this time.
    Show {
        /// Certificates; without any, all of the directory
        certificates: Vec<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoleKind {
    /// Speaks for one router
    Agent,
    /// Commands agents
    Controller,
    /// May change everything
    Operator,
    /// May look at everything
    ReadOnly,
}

impl RoleKind {
    fn role(self, name: &str) -> Result<Role, PkiError> {
        let kind = match self {
            Self::Agent => "agent",
            Self::Controller => "controller",
            Self::Operator => "operator",
            Self::ReadOnly => "read-only",
        };
        Ok(Role::new(kind, name)?)
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let directory = &args.directory;
    match &args.command {
        Command::Init { name, days, force } => {
            let certificate = Authority::create(directory, name, *days, existing(*force))?;
            report(
                args.json,
                &Authority::certificate_path(directory),
                &certificate,
            )?;
        }
        Command::Issue {
            role,
            name,
            addresses,
            days,
            output,
            force,
        } => {
            let role = role.role(name)?;
            let stem = output
                .clone()
                .unwrap_or_else(|| format!("{}-{name}", role.kind()));
            let certificate = directory.join(format!("{stem}.pem"));
            let key = certificate.with_extension("key");
            let taken = [&certificate, &key].into_iter().find(|path| path.exists());
            if let (false, Some(path)) = (force, taken) {
                return Err(PkiError::Exists(path.clone()).into());
            }
            let request = Request::days(role, addresses.clone(), *days);
            let issued = Authority::open(directory)?.issue(&request)?;
            write_private(&key, &issued.key, existing(*force))?;
            write_public(&certificate, &issued.certificate, existing(*force))?;
            report(args.json, &certificate, &Certificate::read(&certificate)?)?;
        }
        Command::Renew {
            certificate,
            days,
            new_key,
        } => {
            renew(directory, certificate, *days, *new_key)?;
            report(args.json, certificate, &Certificate::read(certificate)?)?;
        }
        Command::Show { certificates } => return show(args, certificates),
    }
    Ok(ExitCode::SUCCESS)
}

fn existing(force: bool) -> Existing {
    if force {
        Existing::Replace
    } else {
        Existing::Keep
    }
}

fn renew(directory: &Path, path: &Path, days: u32, new_key: bool) -> Result<(), PkiError> {
    let refused = |problem: String| PkiError::Renew {
        path: path.to_owned(),
        problem,
    };
    let old = Certificate::read(path)?;
    if old.is_authority {
        return Err(refused(
            "it is an authority's; make another one with `natmig pki init --directory`, have both \
             in everyone's `ca` file while certificates are issued anew"
                .to_owned(),
        ));
    }
    let request = Request::days(old.role?, old.names, days);
    let authority = Authority::open(directory)?;
    if !authority.has_signed(path)? {
        return Err(refused(format!(
            "it is not signed by the authority in {}; say with --directory where the one is that \
             signed it, or make another certificate with `natmig pki issue`",
            directory.display()
        )));
    }
    let key_path = path.with_extension("key");
    if new_key {
        let issued = authority.issue(&request)?;
        write_private(&key_path, &issued.key, Existing::Replace)?;
        return write_public(path, &issued.certificate, Existing::Replace);
    }
    let key = fs::read_to_string(&key_path).map_err(|error| {
        refused(format!(
            "its key {} cannot be read ({error}); renew it where the key is, or with --new-key",
            key_path.display()
        ))
    })?;
    let issued = authority.renew(&request, &key)?;
    write_public(path, &issued.certificate, Existing::Replace)
}

fn role(certificate: &Certificate) -> String {
    match &certificate.role {
        _ if certificate.is_authority => "authority".to_owned(),
        Ok(role) => role.to_string(),
        Err(_) => "none".to_owned(),
    }
}

fn value(path: &Path, certificate: &Certificate) -> serde_json::Value {
    let now = SystemTime::now();
    json!({
        "file": path,
        "role": if certificate.is_authority { "authority" } else {
            certificate.role.as_ref().map_or("none", Role::kind)
        },
        "name": certificate.role.as_ref().ok().map(Role::name),
        "uri": certificate.role.as_ref().ok().map(Role::uri),
        "subject": certificate.subject,
        "issuer": certificate.issuer,
        "addresses": certificate.names,
        "not_before": rfc3339(certificate.not_before),
        "not_after": rfc3339(certificate.not_after),
        "valid": is_valid(certificate, now),
        "warning": certificate.warning(now),
        "fingerprint": certificate.fingerprint,
    })
}

fn is_valid(certificate: &Certificate, at: SystemTime) -> bool {
    matches!(
        certificate.validity(at),
        Validity::Valid | Validity::Expiring(_)
    )
}

/// Says what was made.
fn report(json: bool, path: &Path, certificate: &Certificate) -> anyhow::Result<()> {
    if json {
        output::json(&value(path, certificate))?;
    } else {
        output::line(&format!(
            "{}: {}, valid until {}",
            path.display(),
            role(certificate),
            rfc3339(certificate.not_after)
        ))?;
    }
    warn(path, certificate);
    Ok(())
}

fn warn(path: &Path, certificate: &Certificate) {
    if let Some(warning) = certificate.warning(SystemTime::now()) {
        eprintln!("natmig: {}: {warning}", path.display());
    }
}

fn show(args: &Args, given: &[PathBuf]) -> anyhow::Result<ExitCode> {
    let mut paths = given.to_vec();
    if paths.is_empty() {
        let entries = fs::read_dir(&args.directory)
            .map_err(|error| anyhow::anyhow!("{}: {error}", args.directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "pem") {
                paths.push(path);
            }
        }
        paths.sort();
    }
    let certificates = paths
        .iter()
        .map(|path| Ok((path.as_path(), Certificate::read(path)?)))
        .collect::<Result<Vec<_>, PkiError>>()?;
    if args.json {
        let values: Vec<_> = certificates
            .iter()
            .map(|(path, certificate)| value(path, certificate))
            .collect();
        output::json(&values)?;
    } else {
        output::table(
            &[
                "file",
                "role",
                "addresses",
                "valid from",
                "valid until",
                "sha-256",
            ],
            certificates.iter().map(|(path, certificate)| {
                vec![
                    path.display().to_string(),
                    role(certificate),
                    certificate.names.join(" "),
                    rfc3339(certificate.not_before),
                    rfc3339(certificate.not_after),
                    certificate.fingerprint.clone(),
                ]
            }),
        )?;
    }
    let now = SystemTime::now();
    for (path, certificate) in &certificates {
        warn(path, certificate);
    }
    let all_valid = certificates
        .iter()
        .all(|(_, certificate)| is_valid(certificate, now));
    Ok(if all_valid {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}
