//! The server's pages as visitors meet them: the program, a browser, and nothing between.

mod common;

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use fantoccini::{
    Client, ClientBuilder, Locator,
    actions::{InputSource, KeyAction, KeyActions},
    key::Key,
    wd::WebDriverCompatibleCommand,
};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use url::Url;

/// After so long a test calls something hung. Far more than anything takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(120);
const TOKEN: &str = "open-sesame-to-the-guard-of-the-tests";

/// What a page does wrong by itself is collected in it.
const WATCH: &str = r#"
    window.faults = [];
    addEventListener("error", (event) => faults.push(`error: ${event.message ?? event.target.outerHTML}`), true);
    addEventListener("unhandledrejection", (event) => faults.push(`not handled: ${event.reason}`));
    addEventListener("securitypolicyviolation", (event) => {
        faults.push(`${event.violatedDirective}: ${event.blockedURI}`);
    });
"#;

/// What people who do not see a page, or have no mouse, need of it.
const LACKING: &str = r#"
    const lacking = [];
    const all = (selector) => [...document.querySelectorAll(selector)];
    const named = (element) => element.ariaLabel || element.hasAttribute("aria-labelledby");
    const text = (element) => element.textContent.trim() || element.querySelector("img")?.alt;
    if (document.documentElement.lang !== "en") lacking.push("a language");
    if (all("h1").length !== 1) lacking.push("one h1");
    if (all("main").length !== 1 || !document.title) lacking.push("a main part and a title");
    if (!document.querySelector(document.querySelector("a.skip").hash)) lacking.push("what is skipped to");
    const silent = (element) => lacking.push(`words for ${element.outerHTML.slice(0, 99)}`);
    all("img").filter((image) => !image.alt).forEach(silent);
    all("button, a").filter((link) => !text(link)).forEach(silent);
    const labelled = (control) => named(control) || [...control.labels].some(text);
    all("input, select, progress").filter((control) => !labelled(control)).forEach(silent);
    const ids = all("[id]").map((element) => element.id);
    const twice = ids.filter((id, index) => ids.indexOf(id) !== index);
    return lacking.concat(twice.map((id) => `an id of its own instead of ${id}`));
"#;

/// Notes every line that the progress of an attack shows.
const NOTE_PROGRESS: &str = r#"
    window.seen = new Set();
    const text = document.getElementById("progress-text");
    new MutationObserver(() => seen.add(text.textContent)).observe(text, { childList: true });
"#;

/// The clean and the attacked image.
const SHOWN: &str =
    "return [...document.querySelectorAll('.bare img')].slice(0, 2).map((image) => image.src)";

#[tokio::test]
async fn visitors_classify_attack_and_read_reports() {
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
    let (Some(browser), Some(driver)) = (names.into_iter().find_map(on_path), on_path("chromedriver")) else {
        eprintln!("skipped: chromedriver and Chromium have to be on the PATH");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (_server, address) = serve(folder.path(), &[]);
    let (_driver, driver) = drive(&driver);
    let client = open_browser(&driver, &browser, folder.path()).await;
    let page = Page { client: client.clone(), address, folder: folder.path().to_owned() };
    // in a task of its own, so that the browser is closed whatever comes of it
    let visited = tokio::spawn(visit(page)).await;
    client.close().await.unwrap();
    if let Err(error) = visited {
        std::panic::resume_unwind(error.into_panic());
    }
}

async fn visit(page: Page) {
    page.devtools("Page.addScriptToEvaluateOnNewDocument", json!({ "source": WATCH })).await;
    page.open("/").await;
    everything_is_reached_and_chosen_by_keyboard(&page).await;
    an_attack_of_one_step_ends_with_a_verdict(&page).await;
    an_attack_can_be_followed_and_gone_through_again(&page).await;
    page.fits_every_screen("attack").await;
    an_attack_can_be_stopped(&page).await;
    files_are_classified_or_refused(&page).await;
    page.is_without_fault().await;
    runs_are_listed_and_reports_open(&page).await;
    a_token_is_asked_for(&page).await;
}

async fn everything_is_reached_and_chosen_by_keyboard(page: &Page) {
    page.until("document.querySelectorAll('#samples img').length === 24").await;
    let mut reached = Vec::new();
    while reached.len() < 20 && reached.last().is_none_or(|last| last != "go") {
        page.press(&[Key::Tab]).await;
        let at = page.js("const at = document.activeElement; return at.id || at.name || at.className").await;
        let at = at.as_str().unwrap().to_owned();
        if at == "sample" {
            page.press(&[Key::Space]).await;
            let first = page.until("document.getElementById('answer-text').textContent").await;
            page.press(&[Key::Right]).await;
            page.until(&format!("document.getElementById('answer-text').textContent !== {first}")).await;
        }
        reached.push(at);
    }
    reached.retain(|at| ["file", "sample", "attack", "budget", "seed", "go"].contains(&at.as_str()));
    assert_eq!(reached, ["file", "sample", "attack", "budget", "seed", "go"]);

    let chosen = page.js("return document.querySelector('#samples input:checked').value").await;
    assert_eq!(chosen, "1");
    let said = page.text("#answer-text").await;
    let classes = page.asked("/v1/model").await["class_names"].clone();
    let named = |name: &Value| said.contains(&format!("Through the defence: {} (", name.as_str().unwrap()));
    assert!(classes.as_array().unwrap().iter().any(named) && said.contains("\u{a0}%"), "{said}");
    assert!(said.contains("True class: "), "{said}");
    page.pictures_are_drawn("#answer", 3).await;
}

async fn an_attack_of_one_step_ends_with_a_verdict(page: &Page) {
    page.select("attack", "fgsm").await;
    page.select("budget", "8/255").await;
    page.js("document.getElementById('go').focus()").await;
    page.press(&[Key::Enter]).await;
    let summary = page.until("document.getElementById('summary').textContent").await;
    let summary = summary.as_str().unwrap();
    // what became of it decides which of the sentences is there, but one about each attacker is
    assert!(summary.contains("bare classifier") && summary.matches('.').count() >= 2, "{summary}");
    assert!(
        summary.contains("An attacker who knows") || summary.contains("Through the defence"),
        "{summary}"
    );

    let headings = page
        .js("return [...document.querySelectorAll('.target h3')].map((title) => title.textContent)")
        .await;
    let expected = [
        "Attack on the bare classifier (does not know the defence)",
        "Attack through the defence (knows it, exact gradients)",
    ];
    assert_eq!(headings, json!(expected));
    for target in [".target.bare", ".target.defended"] {
        let verdict = page.text(&format!("{target} .verdict")).await;
        for part in ["The bare classifier now says ", "Through the defence: ", "\u{a0}%)"] {
            assert!(verdict.contains(part), "{part:?} is missing: {verdict}");
        }
        page.pictures_are_drawn(target, 5).await;
        assert_eq!(page.count(&format!("{target} .bars tbody tr")).await, 12, "four classes in three tables");
        assert_eq!(page.text(&format!("{target} .steps span")).await, "1 of 1");
    }
    let controls = ["go", "stop", "progress"].map(|id| format!("document.getElementById('{id}').hidden"));
    assert_eq!(page.js(&format!("return [{}]", controls.join(", "))).await, json!([false, true, true]));
}

async fn an_attack_can_be_followed_and_gone_through_again(page: &Page) {
    page.select("attack", "pgd-20").await;
    page.js(NOTE_PROGRESS).await;
    page.find("#go").await.click().await.unwrap();
    page.until("document.getElementById('summary').textContent").await;
    let seen = page.js("return [...seen]").await;
    let seen: Vec<&str> = seen.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for stage in ["Attack on the bare classifier: step ", "Attack through the defence: step "] {
        assert!(seen.iter().filter(|text| text.starts_with(stage)).count() > 2, "{seen:?}");
    }

    let steps = page.js("return Number(document.querySelector('.bare input').max)").await;
    assert!(steps.as_u64().unwrap() > 5, "{steps}");
    assert_eq!(page.text(".bare .steps span").await, format!("{steps} of {steps}"));
    let last = page.js(SHOWN).await;
    page.js("document.querySelector('.bare input').focus()").await;
    page.press(&[Key::Home]).await;
    assert_eq!(page.text(".bare .steps span").await, "0, clean");
    let clean = page.js(SHOWN).await;
    assert_eq!(clean[0], clean[1]);
    assert_ne!(clean[1], last[1]);
    page.press(&[Key::Right]).await;
    assert_eq!(page.text(".bare .steps span").await, format!("1 of {steps}"));
    assert_ne!(page.js(SHOWN).await[1], clean[1]);
    assert!(page.count(".bare details tbody tr").await > 5, "the curve can be read, too");
}

async fn an_attack_can_be_stopped(page: &Page) {
    page.js("document.getElementById('go').focus()").await;
    // the button that stops takes the place of the one that begins, and the keyboard stays on it
    page.press(&[Key::Enter, Key::Enter]).await;
    let said = page.until("document.getElementById('summary').textContent").await;
    assert!(said.as_str().unwrap().starts_with("Stopped"), "{said}");
    assert_eq!(page.js("return document.activeElement.id").await, "go");
}

async fn files_are_classified_or_refused(page: &Page) {
    let (picture, words) = (page.folder.join("picture.png"), page.folder.join("words.txt"));
    let data = talion_data::fashion_mnist_sample().unwrap();
    let pixels = data.image_bytes(0).unwrap().to_vec();
    image::GrayImage::from_raw(28, 28, pixels).unwrap().save(&picture).unwrap();
    fs::write(&words, "no picture").unwrap();
    let file = page.find("#file").await;

    file.send_keys(picture.to_str().unwrap()).await.unwrap();
    page.until("document.getElementById('answer-text').textContent.includes('True class') === false").await;
    let said = page.text("#answer-text").await;
    assert!(said.contains("Through the defence: ") && !said.contains("Resized"), "{said}");
    assert_eq!(page.count("#samples input:checked").await, 0);

    file.send_keys(words.to_str().unwrap()).await.unwrap();
    page.until("document.querySelector('#error p')?.textContent").await;
    assert!(page.find("#error p").await.is_displayed().await.unwrap());
    assert!(!page.find("#answer").await.is_displayed().await.unwrap());

    // an attack on nothing is no attack; then all is well again
    page.find("#go").await.click().await.unwrap();
    page.until("document.querySelector('#error p')?.textContent === 'Choose an image first.'").await;
    file.send_keys(picture.to_str().unwrap()).await.unwrap();
    page.until("!document.getElementById('answer').hidden && !document.querySelector('#error p')").await;
}

async fn runs_are_listed_and_reports_open(page: &Page) {
    page.open("/runs").await;
    page.until("!document.getElementById('empty').hidden").await;
    assert!(page.text("#empty").await.contains("talion evaluate"));
    page.fits_every_screen("no-runs").await;

    keep_a_run(&page.folder);
    page.open("/runs").await;
    page.until("document.querySelector('#rows a')").await;
    let row = page.text("#rows tr").await;
    assert!(["first", "paper", "100 %"].iter().all(|part| row.contains(part)), "{row}");
    page.fits_every_screen("runs").await;
    page.is_without_fault().await;

    page.find("#rows a").await.click().await.unwrap();
    page.until("location.pathname === '/runs/first' && document.querySelector('h1')?.textContent").await;
    assert!(page.text("h1").await.starts_with("Attacks on"));
    assert!(page.js("return document.styleSheets[0].cssRules.length").await.as_u64().unwrap() > 0);
    page.is_without_fault().await;
}

/// A server of its own: the first page asks for the token, and the report, which no link could open, opens below.
async fn a_token_is_asked_for(page: &Page) {
    fs::write(page.folder.join("tokens"), TOKEN).unwrap();
    let (_server, address) = serve(&page.folder, &["--tokens", "tokens"]);
    let page = Page { address, ..page.clone() };
    page.open("/").await;
    page.until("!document.getElementById('token').hidden").await;
    assert_eq!(page.js("return document.activeElement.id").await, "token-input");
    page.fits_every_screen("token").await;
    page.find("#token-input").await.send_keys("some-other-token-that-nobody-gave-out").await.unwrap();
    page.press(&[Key::Enter]).await;
    page.until("!document.getElementById('token').hidden && document.querySelector('#error p')").await;
    let input = page.find("#token-input").await;
    input.clear().await.unwrap();
    input.send_keys(TOKEN).await.unwrap();
    page.press(&[Key::Enter]).await;
    page.until("document.querySelectorAll('#samples img').length === 24").await;
    assert!(!page.find("#token").await.is_displayed().await.unwrap());
    assert_eq!(page.js("return localStorage.length").await, 0);

    page.open("/runs").await;
    page.until("document.querySelector('#rows a')").await;
    page.find("#rows a").await.click().await.unwrap();
    page.until("!document.getElementById('report').hidden && document.getElementById('frame').srcdoc").await;
    assert_eq!(page.js("return location.pathname").await, "/runs");
    assert_eq!(page.js("return document.getElementById('save').download").await, "first.html");
}

/// A browser's tab.
#[derive(Clone)]
struct Page {
    client: Client,
    address: String,
    folder: PathBuf,
}

impl Page {
    async fn open(&self, path: &str) {
        self.client.goto(&format!("{}{path}", self.address)).await.unwrap();
    }

    async fn js(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Waits until `expression` is something, and returns what.
    async fn until(&self, expression: &str) -> Value {
        let begun = Instant::now();
        loop {
            let value = self.js(&format!("return {expression}")).await;
            if !matches!(&value, Value::Null | Value::Bool(false)) && value != "" {
                return value;
            }
            if begun.elapsed() > PATIENCE {
                let shown = self.js("return document.body.innerText").await;
                panic!("{expression}: it never comes to that; the page says {shown:#}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn find(&self, selector: &str) -> fantoccini::elements::Element {
        let found = self.client.find(Locator::Css(selector)).await;
        found.unwrap_or_else(|error| panic!("{selector}: {error}"))
    }

    async fn text(&self, selector: &str) -> String {
        let text = self.js(&format!("return document.querySelector('{selector}').textContent")).await;
        text.as_str().unwrap().to_owned()
    }

    async fn count(&self, selector: &str) -> usize {
        self.client.find_all(Locator::Css(selector)).await.unwrap().len()
    }

    /// What the server tells the page.
    async fn asked(&self, path: &str) -> Value {
        let script = format!("fetch('{path}').then((answer) => answer.json()).then(arguments[0])");
        self.client.execute_async(&script, Vec::new()).await.unwrap()
    }

    async fn select(&self, id: &str, value: &str) {
        self.find(&format!("#{id}")).await.select_by_value(value).await.unwrap();
    }

    async fn press(&self, keys: &[Key]) {
        let mut actions = KeyActions::new("keyboard".into());
        for &key in keys {
            actions =
                actions.then(KeyAction::Down { value: key.into() }).then(KeyAction::Up { value: key.into() });
        }
        self.client.perform_actions(actions).await.unwrap();
    }

    /// Whether a part of the page has so many pictures that came with an answer and that the browser can draw.
    async fn pictures_are_drawn(&self, part: &str, count: usize) {
        let images = format!("[...document.querySelectorAll('{part} img')]");
        self.until(&format!("{images}.every((image) => image.complete && image.naturalWidth > 0)")).await;
        let sources = self.js(&format!("return {images}.map((image) => image.src)")).await;
        let sources = sources.as_array().unwrap();
        // the image that was given is shown from the browser's own memory
        let drawn = |source: &Value| {
            let source = source.as_str().unwrap();
            source.starts_with("data:image/png;base64,") || (part == "#answer" && source.starts_with("blob:"))
        };
        assert_eq!(sources.len(), count, "{part}: {sources:?}");
        assert!(sources.iter().all(drawn), "{part}: {sources:?}");
    }

    async fn devtools(&self, command: &str, parameters: Value) {
        let body = json!({ "cmd": command, "params": parameters });
        self.client.issue_cmd(ChromeCommand { path: "goog/cdp/execute", body }).await.unwrap();
    }

    /// Whether the page is legible on a phone and on a desk, by day and by night, and by those who do not see it.
    async fn fits_every_screen(&self, name: &str) {
        assert_eq!(self.js(LACKING).await, json!([]), "{name}");
        for width in [320, 360, 1280] {
            let mut grounds = Vec::new();
            for scheme in ["light", "dark"] {
                let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
                self.devtools("Emulation.setEmulatedMedia", json!({ "features": [feature] })).await;
                self.set_size(width, 800).await;
                let sizes = self.js("return [document.documentElement.scrollWidth, innerWidth]").await;
                let fits = sizes[0].as_u64() <= sizes[1].as_u64();
                assert!(fits, "{name}, {width} pixels, {scheme}: {sizes}");
                grounds.push(self.js("return getComputedStyle(document.body).backgroundColor").await);
                self.keep_screenshot(&format!("{name}-{width}-{scheme}"), width).await;
            }
            assert_ne!(grounds[0], grounds[1], "{name}");
        }
        self.devtools("Emulation.clearDeviceMetricsOverride", json!({})).await;
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": [] })).await;
    }

    async fn set_size(&self, width: u64, height: u64) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// The whole page as a picture, in the folder that TALION_SCREENSHOTS names if there is one.
    async fn keep_screenshot(&self, name: &str, width: u64) {
        let Some(folder) = env::var_os("TALION_SCREENSHOTS") else { return };
        let height = self.js("return document.documentElement.scrollHeight").await;
        self.set_size(width, height.as_u64().unwrap()).await;
        let picture = self.client.screenshot().await.unwrap();
        fs::create_dir_all(&folder).unwrap();
        fs::write(Path::new(&folder).join(format!("{name}.png")), picture).unwrap();
    }

    /// Whether neither the page nor the browser had anything to complain of, but for the file that was no picture.
    async fn is_without_fault(&self) {
        assert_eq!(self.js("return faults").await, json!([]));
        let log = ChromeCommand { path: "se/log", body: json!({ "type": "browser" }) };
        let log = self.client.issue_cmd(log).await.unwrap();
        for entry in log.as_array().unwrap() {
            let message = entry["message"].as_str().unwrap();
            assert!(entry["level"] != "SEVERE" || message.contains("status of 415"), "{message}");
        }
    }
}

/// What chromedriver can do beside the standard.
#[derive(Debug)]
struct ChromeCommand {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for ChromeCommand {
    fn endpoint(&self, base_url: &Url, session_id: Option<&str>) -> Result<Url, url::ParseError> {
        base_url.join(&format!("session/{}/{}", session_id.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.body.to_string()))
    }
}

/// A program that runs beside the test. Dropping it kills it.
struct Running {
    child: Child,
    /// Open as long as the program runs, which may write to it.
    output: BufReader<ChildStdout>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// The next line on standard output; empty at its end.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // it may have ended before
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts `talion serve` on a free port. Returns its address, too.
fn serve(folder: &Path, arguments: &[&str]) -> (Running, String) {
    let log = folder.join("serve.log");
    let usual = ["--json", "serve", "--port", "0", "--deadline-ms", "120000", "--runs", "runs"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_talion"));
    command.current_dir(folder).args(usual).args(arguments).stderr(File::create(&log).unwrap());
    let mut server = Running::start(&mut command);
    let line: Value = serde_json::from_str(&server.line())
        .unwrap_or_else(|error| panic!("{error}: {}", fs::read_to_string(&log).unwrap()));
    let address = line["listening"].as_str().unwrap().to_owned();
    (server, address)
}

/// Starts chromedriver on a free port. Returns its address, too.
fn drive(chromedriver: &Path) -> (Running, String) {
    let mut driver = Running::start(Command::new(chromedriver).arg("--port=0").stderr(Stdio::null()));
    loop {
        let line = driver.line();
        assert!(!line.is_empty(), "chromedriver did not say on which port it listens");
        if let Some((_, port)) = line.split_once("started successfully on port ") {
            let address = format!("http://127.0.0.1:{}/", port.trim().trim_end_matches('.'));
            return (driver, address);
        }
    }
}

async fn open_browser(driver: &str, browser: &Path, folder: &Path) -> Client {
    let profile = format!("--user-data-dir={}", folder.join("profile").display());
    let arguments = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        &profile,
    ];
    let capabilities = json!({
        "goog:chromeOptions": { "binary": browser, "args": arguments },
        "goog:loggingPrefs": { "browser": "ALL" },
    });
    let capabilities = capabilities.as_object().unwrap().clone();
    ClientBuilder::new(HttpConnector::new()).capabilities(capabilities).connect(driver).await.unwrap()
}

fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A finished run of small untrained networks in `runs/first`.
fn keep_a_run(folder: &Path) {
    common::networks(folder);
    let command = ["evaluate", "--model", "model", "--trn", "trn", "--protocol", "paper"];
    let size = ["--images", "2", "--run", "runs/first"];
    let mut evaluate = Command::new(env!("CARGO_BIN_EXE_talion"));
    let output = evaluate.current_dir(folder).args(command).args(size).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
