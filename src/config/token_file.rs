//! Creates a missing token file (`http.token_file_create`).

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::value::StringDeserializer;
use serde::{Deserialize, Deserializer};

use super::secret::Secret;
use super::value;
use crate::base::random::random_bits;
use crate::base::warnings;

const TOPIC: &str = "http.token_file";

/// Reads the token in a file, which is created with a new token if it is missing.
///
/// If it cannot be created, the result is a secret that no token matches. The service starts, and
/// the endpoint refuses all requests instead of accepting all.
pub(super) fn read_or_create<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Secret, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if let Err(error) = create_if_missing(&path) {
        let shown = path.display();
        warnings::set(
            TOPIC,
            format!(
                "cannot create the token file `{shown}`: {error}; the endpoint rejects all \
                 requests; choose a file in a directory that this user can write, or listen on a \
                 Unix socket"
            ),
        );
        return Ok(Secret::unmatchable());
    }
    warnings::clear(TOPIC);
    value::token_file(StringDeserializer::new(path.to_string_lossy().into_owned()))
}

/// Creates the file with a new token, unless `path` exists.
fn create_if_missing(path: &Path) -> io::Result<()> {
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        // Another process of the service has created it in the meantime.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        file => file?,
    };
    let written =
        generate_token().and_then(|token| writeln!(file, "{token}")).and_then(|()| file.sync_all());
    written.inspect_err(|_| drop(std::fs::remove_file(path)))
}

/// Returns 256 random bits in 64 hexadecimal digits.
fn generate_token() -> io::Result<String> {
    Ok(format!("{:032x}{:032x}", random_bits()?, random_bits()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn read(path: &Path) -> Secret {
        let path = path.to_str().unwrap().to_owned();
        read_or_create(StringDeserializer::<serde::de::value::Error>::new(path)).unwrap()
    }

    #[test]
    fn missing_token_file_is_created_once_with_mode_0600() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/token");
        let token = read(&path);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(token, Secret::new(text.trim_end()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(text.trim_end().len(), 64, "{text}");
        assert_eq!(read(&path), token);
    }

    #[test]
    fn uncreatable_token_file_rejects_all_requests() {
        // A file cannot be created below a regular file.
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().join("token");
        assert_eq!(read(&path), Secret::unmatchable());
        let text =
            warnings::list().into_iter().find(|warning| warning.topic == TOPIC).unwrap().text;
        assert!(text.contains("rejects all requests"), "{text}");
    }
}
