/*!
Measuring classifiers and defences: who attacks what, how many survive, and how sure that figure is.

Every figure is a count of samples with a 95 % interval. Attacks that do not see the defence (`oblivious`, the setting
of the TRN paper) and attacks that do are never mixed: a row says which it is.
*/

mod measure;
mod picture;
mod plan;
mod statistics;
mod table;

pub use measure::{Contender, Measured, Row, evaluate};
pub use picture::{Scene, gallery};
pub use plan::{Plan, Setting};
pub use statistics::{Proportion, mcnemar};
pub use table::markdown;
