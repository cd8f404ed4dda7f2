//! Where the figures come from: the command, the machine, the networks, the whole configuration.

use talion_core::{Error, Result};

use crate::{
    Player, RunHeader,
    report::{html::Html, runs::Runs, words},
};

/// The configuration of each run as text.
///
/// # Errors
/// If one has no text, which does not happen: all its fields are plain values.
pub(in crate::report) fn configurations(runs: &Runs<'_>) -> Result<Vec<String>> {
    let text = |header: &RunHeader| serde_json::to_string_pretty(&header.config).map_err(Error::other);
    runs.all().iter().map(|summary| text(&summary.header)).collect()
}

pub(in crate::report) fn origin(html: &mut Html, runs: &Runs<'_>, configurations: &[String]) {
    html.section("origin", "Origin", |html| {
        for ((run, summary), configuration) in runs.named().zip(configurations) {
            if let Some(run) = run {
                html.leaf("h3", &[], run);
            }
            html.paragraph("The command that was run:");
            html.leaf("pre", &[("class", "command")], words::command(&summary.header.environment.command));
            environment(html, &summary.header);
            players(html, &summary.header);
            html.element("details", &[], |html| {
                html.leaf("summary", &[], "The whole configuration, as JSON");
                html.leaf("pre", &[("class", "scroll"), ("tabindex", "0")], configuration);
            });
        }
    });
}

fn environment(html: &mut Html, header: &RunHeader) {
    let (config, place) = (&header.config, &header.environment);
    let facts = [
        ("talion", place.talion.clone()),
        ("libtorch", place.libtorch.clone()),
        ("device", place.device.clone()),
        ("processor", format!("{}, {} usable, {} threads", place.processor, place.processors, place.threads)),
        ("system", place.system.clone()),
        ("begun", words::moment(place.begun)),
        ("protocol", config.protocol.clone()),
        ("data", format!("{}, first {} of the test split", config.data, config.samples)),
        ("data SHA-256", config.data_sha256.clone()),
        ("seed", config.seed.to_string()),
    ];
    html.element("dl", &[("class", "terms")], |html| {
        for (name, fact) in facts {
            html.element("div", &[], |html| {
                html.leaf("dt", &[], name);
                html.leaf("dd", &[("class", "exact")], fact);
            });
        }
    });
}

fn players(html: &mut Html, header: &RunHeader) {
    html.table("listing", "Classifiers that took part, and the SHA-256 of their weights.", |html| {
        html.head(|html| {
            html.row(|html| {
                ["Name", "Part", "What it is", "SHA-256"].iter().for_each(|name| html.column_of_words(name));
            });
        });
        html.body(|html| {
            let part = |defended: bool| if defended { "contender, defended" } else { "contender, bare" };
            header.config.contenders.iter().for_each(|one| player(html, one, part(one.defended)));
            header.config.surrogates.iter().for_each(|one| player(html, one, "surrogate"));
        });
    });
}

fn player(html: &mut Html, player: &Player, part: &str) {
    html.row(|html| {
        html.row_name(&player.name);
        html.words(part);
        html.words(&player.description);
        html.element("td", &[("class", "words")], |html| html.leaf("code", &[], &player.sha256));
    });
}
