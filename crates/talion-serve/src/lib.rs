/*!
The guard in front of a classifier: an HTTP server that answers through the defence, and the page that shows what the defence
does.

[`serve`] runs until it is asked to stop. Requests go the same way, always: [`http`](self) reads and decodes them within limits,
the [`queue`](self) holds so many images and no more, a worker thread that owns the networks takes what has come in as one batch, and
whoever waited gets an answer. What the networks cannot do is decided before they are asked.

```text
 bytes ──> decode ──> prepare ──> queue ──> worker (Guard) ──> answer
            limits     size,       429,      batches,
                       colour      504       suspicion
```

The page may also run attacks ([`Playground`](self)); these have a thread and networks of their own, so that somebody who watches an
attack does not stop the guard.
*/

mod app;
mod config;
mod decode;
mod error;
mod guard;
mod http;
mod metrics;
mod pixels;
mod playground;
mod prepare;
mod queue;
mod server;
mod tokens;
mod worker;

pub use config::{Limits, ServeConfig, TlsFiles};
pub use error::{Error, Result};
pub use guard::Networks;
pub use server::{Loader, Served, serve};
pub use tokens::Tokens;
