//! The word that a defence has to earn, kept out of reports in which it has not.
//!
//! The report's own sentences do without it. Names and commands come from outside, though, and a network in a file called
//! by that word would be called so in every table. So the word goes from the finished text, whatever it came from. JSON,
//! which is for programs, keeps what was written.

/// What nobody may be called whom nobody who knows it attacked.
const WORD: &str = "robust";

/// What stands in its place.
const MARK: &str = "(...)";

/// What the banner says of it.
pub(super) const NOTE: &str = "Where a name, a command or a paper's title holds the word for a defence that withstands \
    such an attacker, it reads (...) here.";

/// A page without the word. What is inside a picture's data are not words.
pub(super) fn from_page(page: &str) -> String {
    // texts and attributes have no plain quotes of their own, they are escaped: quotes only surround attributes
    let parts = page.split('"').map(|part| {
        if part.starts_with("data:image/png;base64,") { part.to_owned() } else { from_text(part) }
    });
    parts.collect::<Vec<_>>().join("\"")
}

/// A text without the word, however it is spelled.
pub(super) fn from_text(text: &str) -> String {
    // ASCII letters keep their places when they become small, so places in one text are places in the other
    let small = text.to_ascii_lowercase();
    let mut result = String::with_capacity(text.len());
    let mut from = 0;
    for (at, word) in small.match_indices(WORD) {
        result.push_str(&text[from..at]);
        result.push_str(MARK);
        from = at + word.len();
    }
    result.push_str(&text[from..]);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_goes_in_every_spelling_and_nothing_else_does() {
        assert_eq!(
            from_text("Robust-net, ROBUSTNESS, röbust, ro bust"),
            "(...)-net, (...)NESS, röbust, ro bust"
        );
        assert_eq!(from_text("nothing"), "nothing");
    }

    #[test]
    fn pictures_keep_their_bytes() {
        let page = r#"<img src="data:image/png;base64,AArobustAA=" alt="robust">"#;
        assert_eq!(from_page(page), r#"<img src="data:image/png;base64,AArobustAA=" alt="(...)">"#);
    }
}
