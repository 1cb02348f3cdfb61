//! Secrets of a local run: `--secret NAME/KEY=env:VARIABLE`.

use std::{env, fs, io::Read, path::PathBuf, str::FromStr};

use crate::{api::source::SecretKey, domain::source::SourceSpec, engine::GivenSecrets};

/// An entry of a Secret, and where its value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretArgument {
    name: String,
    key: String,
    location: SecretLocation,
}

/// Location of the value of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SecretLocation {
    Variable(String),
    File(PathBuf),
    StandardInput,
}

impl FromStr for SecretArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || {
            "must be NAME/KEY=env:VARIABLE, NAME/KEY=file:PATH or NAME/KEY=- (standard input), such as gitlab/token=env:TOKEN"
                .to_owned()
        };
        let (entry, location) = text.split_once('=').ok_or_else(usage)?;
        let (name, key) = entry.split_once('/').ok_or_else(usage)?;
        let location = match (location, location.split_once(':')) {
            ("-", _) => SecretLocation::StandardInput,
            (_, Some(("env", variable))) if !variable.is_empty() => SecretLocation::Variable(variable.to_owned()),
            (_, Some(("file", path))) if !path.is_empty() => SecretLocation::File(path.into()),
            _ => return Err(usage()),
        };
        if name.is_empty() || key.is_empty() {
            return Err(usage());
        }
        Ok(Self { name: name.to_owned(), key: key.to_owned(), location })
    }
}

/// A Secret that is not given, or cannot be read. The texts hold no value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("--secret {entry}: the environment variable {variable} is not set: export it")]
    Variable { entry: String, variable: String },
    #[error("--secret {entry}: could not read {path}: {cause}")]
    File { entry: String, path: String, cause: String },
    #[error("--secret {0}: standard input is already in use: give only one of the manifest and one Secret as -")]
    StandardInput(String),
    #[error("{field} names the Secret {name}, which is not given: add --secret {name}/{key}=env:VARIABLE")]
    Missing { field: String, name: String, key: String },
}

/// Reads the values of all given entries. `stdin_is_free` is false when a manifest is read from standard input.
pub(super) fn load_given(given: &[SecretArgument], mut stdin_is_free: bool) -> Result<GivenSecrets, Error> {
    let mut secrets = GivenSecrets::default();
    for SecretArgument { name, key, location } in given {
        let entry = format!("{name}/{key}");
        let value = match location {
            SecretLocation::Variable(variable) => env::var(variable)
                .map(String::into_bytes)
                .map_err(|_| Error::Variable { entry, variable: variable.clone() })?,
            SecretLocation::File(path) => fs::read(path).map_err(|error| Error::File {
                entry,
                path: path.display().to_string(),
                cause: error.to_string(),
            })?,
            SecretLocation::StandardInput if !stdin_is_free => return Err(Error::StandardInput(entry)),
            SecretLocation::StandardInput => {
                stdin_is_free = false;
                let mut value = Vec::new();
                std::io::stdin().read_to_end(&mut value).map_err(|error| Error::File {
                    entry,
                    path: "standard input".to_owned(),
                    cause: error.to_string(),
                })?;
                value
            }
        };
        secrets.insert(name.clone(), key.clone(), value);
    }
    Ok(secrets)
}

/// Checks that each Secret that a source names is given.
pub(super) fn check(source: &SourceSpec, given: &[SecretArgument]) -> Result<(), Error> {
    let token = source.token.iter().map(|entry| ("tokenSecretRef", entry));
    let headers = source.headers.iter().map(|header| ("headersFrom", &header.secret_ref));
    let ca = source.ca.iter().map(|entry| ("caSecretRef", entry));
    let is_given = |entry: &SecretKey| given.iter().any(|one| one.name == entry.name && one.key == entry.key);
    match token.chain(headers).chain(ca).find(|(_, entry)| !is_given(entry)) {
        None => Ok(()),
        Some((field, SecretKey { name, key })) => {
            Err(Error::Missing { field: source.field(field), name: name.clone(), key: key.clone() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_comes_from_a_variable_a_file_or_stdin() {
        for (text, location) in [
            ("gitlab/token=env:TOKEN", SecretLocation::Variable("TOKEN".to_owned())),
            ("gitlab/token=file:/run/a=b", SecretLocation::File("/run/a=b".into())),
            ("gitlab/token=-", SecretLocation::StandardInput),
        ] {
            let expected = SecretArgument { name: "gitlab".to_owned(), key: "token".to_owned(), location };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "gitlab", "gitlab/token", "gitlab=env:A", "/a=env:A", "a/=env:A", "a/b=env:", "a/b=secret"] {
            let error = text.parse::<SecretArgument>().unwrap_err();
            assert!(error.contains("NAME/KEY=env:VARIABLE") && !error.contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn a_secret_that_cannot_be_read_is_named_with_the_fix() {
        let error =
            |text: &str, stdin_is_free| load_given(&[text.parse().unwrap()], stdin_is_free).err().unwrap().to_string();
        assert!(error("a/b=env:SYNC_OPERATOR_NO_SUCH_VARIABLE", true).contains("export it"));
        assert!(error("a/b=file:/no/such/file", true).contains("could not read /no/such/file"));
        assert!(error("a/b=-", false).contains("standard input is already in use"));
    }
}
