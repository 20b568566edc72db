//! Tokens in settings.

use std::fmt;

use hmac_sha256::Hash;

/// A token that can be verified but not recovered. Only its SHA-256 is kept, and `Debug` does not
/// print it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    digest: [u8; 32],
    sendable: bool,
}

impl Secret {
    /// Returns a secret that matches `token`.
    pub fn new(token: impl AsRef<str>) -> Self {
        let token = token.as_ref();
        let sendable = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        Self { digest: Hash::hash(token.as_bytes()), sendable }
    }

    /// Returns a secret that no token matches: none with this SHA-256 is known.
    pub(super) const fn unmatchable() -> Self {
        Self { digest: [0; 32], sendable: true }
    }

    /// Returns a secret that matches the token with this SHA-256, or `None` unless `hex` has 64
    /// hexadecimal digits.
    pub fn from_sha256(hex: &str) -> Option<Self> {
        let digits: Vec<u8> =
            hex.chars().map(|digit| Some(digit.to_digit(16)? as u8)).collect::<Option<_>>()?;
        let bytes: Vec<u8> =
            digits.chunks(2).map(|pair| pair.iter().fold(0, |n, d| n << 4 | d)).collect();
        let digest = bytes.try_into().ok().filter(|_| digits.len() == 64)?;
        Some(Self { digest, sendable: true })
    }

    /// Returns the SHA-256 of the token.
    pub const fn sha256(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Returns `true` if a header can hold the token.
    pub(super) const fn is_sendable(&self) -> bool {
        self.sendable
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_matches_text_and_sha256() {
        let hex = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        assert_eq!(Secret::from_sha256(hex), Some(Secret::new("secret")));
        assert_eq!(format!("{:?}", Secret::new("secret")), "(secret)");
        for wrong in ["", &hex[1..], &format!("{hex}0"), &hex.replace('2', "x"), "é"] {
            assert_eq!(Secret::from_sha256(wrong), None, "{wrong}");
        }
    }
}
