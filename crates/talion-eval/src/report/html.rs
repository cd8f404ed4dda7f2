//! HTML under construction. Names of tags and attributes are part of the program; everything else is escaped here.

use std::fmt::{self, Write};

use base64::{Engine, engine::general_purpose::STANDARD};

use super::chart::Svg;

/// Attributes of an element: names from the program, values from anywhere.
pub(super) type Attributes<'a> = &'a [(&'static str, &'a str)];

/// A page, or a part of one.
#[derive(Default)]
pub(super) struct Html {
    page: String,
    tables: usize,
    figures: usize,
}

impl Html {
    pub(super) fn finished(self) -> String {
        self.page
    }

    /// An element and what `inside` puts into it.
    pub(super) fn element(
        &mut self,
        tag: &'static str,
        attributes: Attributes<'_>,
        inside: impl FnOnce(&mut Self),
    ) {
        self.start(tag, attributes);
        inside(self);
        self.page.push_str("</");
        self.page.push_str(tag);
        self.page.push('>');
        // for those who read the source
        if matches!(
            tag,
            "p" | "tr" | "li" | "dd" | "figure" | "table" | "section" | "style" | "title" | "header"
        ) {
            self.page.push('\n');
        }
    }

    /// An element that holds text alone.
    pub(super) fn leaf(&mut self, tag: &'static str, attributes: Attributes<'_>, text: impl fmt::Display) {
        self.element(tag, attributes, |html| html.text(text));
    }

    /// An element that cannot hold anything, such as `meta`.
    pub(super) fn void(&mut self, tag: &'static str, attributes: Attributes<'_>) {
        self.start(tag, attributes);
    }

    /// Text.
    pub(super) fn text(&mut self, text: impl fmt::Display) {
        // writing into a string cannot fail
        let _ = write!(Escaping(&mut self.page), "{text}");
    }

    /// Text that is part of the program and already HTML, or a style sheet.
    pub(super) fn trusted(&mut self, text: &'static str) {
        self.page.push_str(text);
    }

    pub(super) fn svg(&mut self, svg: &Svg) {
        self.page.push_str(svg.markup());
    }

    /// A PNG file, as part of the page.
    pub(super) fn png(&mut self, file: &[u8], alternative: &str) {
        let source = format!("data:image/png;base64,{}", STANDARD.encode(file));
        self.void("img", &[("src", source.as_str()), ("alt", alternative)]);
    }

    /// A part of the page with a heading that links can go to.
    pub(super) fn section(&mut self, id: &'static str, title: &str, inside: impl FnOnce(&mut Self)) {
        let heading = format!("{id}-heading");
        self.element("section", &[("id", id), ("aria-labelledby", heading.as_str())], |html| {
            html.leaf("h2", &[("id", heading.as_str())], title);
            inside(html);
        });
    }

    /// A paragraph.
    pub(super) fn paragraph(&mut self, text: impl fmt::Display) {
        self.leaf("p", &[], text);
    }

    /// A numbered table, in a box of its own: where the page is too narrow the box scrolls, not the page, with the
    /// keyboard too. What a `class` means is in the style sheet: `numbers` or `listing`, and `wide` for turned paper.
    pub(super) fn table(&mut self, class: &str, caption: impl fmt::Display, rows: impl FnOnce(&mut Self)) {
        self.tables += 1;
        let (number, id) = (self.tables, format!("table-{}", self.tables));
        let region =
            [("class", "scroll"), ("role", "region"), ("aria-labelledby", id.as_str()), ("tabindex", "0")];
        self.element("div", &region, |html| {
            html.element("table", &[("class", class)], |html| {
                html.element("caption", &[("id", id.as_str())], |html| {
                    html.element("span", &[], |html| {
                        html.leaf("b", &[], format_args!("Table {number}."));
                        html.text(format_args!(" {caption}"));
                    });
                });
                rows(html);
            });
        });
    }

    /// A numbered figure under its caption.
    pub(super) fn figure(&mut self, caption: impl fmt::Display, content: impl FnOnce(&mut Self)) {
        self.figures += 1;
        let number = self.figures;
        self.element("figure", &[], |html| {
            html.element("figcaption", &[], |html| {
                html.leaf("b", &[], format_args!("Figure {number}."));
                html.text(format_args!(" {caption}"));
            });
            content(html);
        });
    }

    /// The part of a table that names its columns.
    pub(super) fn head(&mut self, rows: impl FnOnce(&mut Self)) {
        self.element("thead", &[], rows);
    }

    /// The part of a table with the figures.
    pub(super) fn body(&mut self, rows: impl FnOnce(&mut Self)) {
        self.element("tbody", &[], rows);
    }

    pub(super) fn row(&mut self, cells: impl FnOnce(&mut Self)) {
        self.element("tr", &[], cells);
    }

    /// The name of a column.
    pub(super) fn column(&mut self, name: impl fmt::Display) {
        self.leaf("th", &[("scope", "col")], name);
    }

    /// The name of a column of words, which stand at the left.
    pub(super) fn column_of_words(&mut self, name: impl fmt::Display) {
        self.leaf("th", &[("scope", "col"), ("class", "words")], name);
    }

    /// The name of several columns side by side.
    pub(super) fn columns(&mut self, count: usize, name: impl fmt::Display) {
        let count = count.to_string();
        self.leaf("th", &[("scope", "colgroup"), ("colspan", count.as_str()), ("class", "group")], name);
    }

    /// The name of a row.
    pub(super) fn row_name(&mut self, name: impl fmt::Display) {
        self.leaf("th", &[("scope", "row")], name);
    }

    /// A figure.
    pub(super) fn cell(&mut self, text: impl fmt::Display) {
        self.leaf("td", &[], text);
    }

    /// A cell of words.
    pub(super) fn words(&mut self, text: impl fmt::Display) {
        self.leaf("td", &[("class", "words")], text);
    }

    fn start(&mut self, tag: &'static str, attributes: Attributes<'_>) {
        self.page.push('<');
        self.page.push_str(tag);
        for (name, value) in attributes {
            self.page.push(' ');
            self.page.push_str(name);
            self.page.push_str("=\"");
            self.text(value);
            self.page.push('"');
        }
        self.page.push('>');
    }
}

/// `text` as HTML or SVG, in an element or in an attribute.
pub(super) fn escaped(text: impl fmt::Display) -> String {
    let mut result = String::new();
    // writing into a string cannot fail
    let _ = write!(Escaping(&mut result), "{text}");
    result
}

/// A control character is no text, and some are not even allowed in HTML.
pub(super) fn printable(c: char) -> char {
    if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }
}

/// Escapes whatever is written to it.
struct Escaping<'a>(&'a mut String);

impl Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\n' | '\t' => self.0.push(c),
                c => self.0.push(printable(c)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_becomes_markup() {
        let mut html = Html::default();
        html.leaf("p", &[("title", "\"><script>alert(1)</script>")], "<b>'&'</b>\u{0}");
        assert_eq!(
            html.finished(),
            "<p title=\"&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;\">&lt;b&gt;&#39;&amp;&#39;&lt;/b&gt;\u{fffd}</p>\n"
        );
    }
}
