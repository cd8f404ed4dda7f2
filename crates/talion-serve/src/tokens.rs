//! Who may ask.

use std::{fmt, path::Path};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::{Error, Result};

/// Shortest token that is accepted in a file, in bytes: what is shorter can be guessed.
const SHORTEST: usize = 16;

/// Bearer tokens (RFC 6750). Only their digests are kept.
#[derive(Clone, Default)]
pub struct Tokens(Vec<[u8; 32]>);

impl Tokens {
    /// Reads a file with a token a line; empty lines and lines that begin with `#` are left out.
    ///
    /// # Errors
    /// If the file cannot be read, holds no token, or holds one that is shorter than 16 bytes or has spaces inside.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |problem: String| Error::Tokens { path: path.to_owned(), problem };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let mut digests = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // the token itself must not get into an error message
            if line.len() < SHORTEST || line.contains(char::is_whitespace) {
                let problem = format!(
                    "line {} is no token: at least {SHORTEST} bytes, no spaces (`openssl rand -hex 32` makes one)",
                    number + 1
                );
                return Err(wrong(problem));
            }
            digests.push(digest(line));
        }
        if digests.is_empty() {
            return Err(wrong("holds no token; write one a line".into()));
        }
        Ok(Self(digests))
    }

    /// Whether everybody may ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the value of an `Authorization` header admits its sender. Takes the same time whichever token is right and
    /// however much of one.
    pub fn admit(&self, authorization: Option<&str>) -> bool {
        if self.is_empty() {
            return true;
        }
        let Some((scheme, token)) = authorization.and_then(|value| value.split_once(' ')) else {
            return false;
        };
        // digests have one length, so that the comparison does not tell that of a token
        let offered = digest(token.trim());
        let known = self.0.iter().fold(Choice::from(0), |known, token| known | token.ct_eq(&offered));
        scheme.eq_ignore_ascii_case("bearer") && bool::from(known)
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_admits_and_nothing_else_does() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# for the tests\n\nfirst-token-0123456789\n second-token-987654321 \n")
            .unwrap();
        let tokens = Tokens::read(file.path()).unwrap();
        for right in ["Bearer first-token-0123456789", "bearer second-token-987654321"] {
            assert!(tokens.admit(Some(right)), "{right}");
        }
        for wrong in [
            None,
            Some(""),
            Some("Bearer"),
            Some("Bearer "),
            Some("Basic first-token-0123456789"),
            Some("first-token-0123456789"),
            Some("Bearer first-token-012345678"),
            Some("Bearer first-token-01234567890"),
            Some("Bearer # for the tests"),
        ] {
            assert!(!tokens.admit(wrong), "{wrong:?}");
        }
        assert!(Tokens::default().admit(None));
        assert!(!format!("{tokens:?}").contains("first"));
    }

    #[test]
    fn files_without_good_tokens_are_refused_without_telling_what_was_in_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, said) in [
            ("", "no token"),
            ("# only this\n", "no token"),
            ("\nshort\n", "line 2"),
            ("two words, but long", "line 1"),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let error = Tokens::read(file.path()).unwrap_err().to_string();
            assert!(
                error.contains(said) && !error.contains("short\n") && !error.contains("two words"),
                "{error}"
            );
        }
        assert!(Tokens::read(Path::new("no-such-file")).unwrap_err().to_string().contains("no-such-file"));
    }
}
