//! The benchmark in the box: union filesystems side by side, on the same layers, in one run.
//!
//! A [`Plan`] says what is measured; [`run`] prepares the layers (`stack`), mounts them by every contestant (`contestants`), has
//! each play the same scenes (`workloads`) in interleaved rounds (`runner`), and returns a [`Report`]: medians, spreads and
//! ratios, as a table, as JSON, or as a page with plots.
//!
//! All workloads are system calls made by this process, one after the other; no program is started but where a real program
//! is the workload. Everything lies in one scratch directory, which is taken away at the end, also after an interrupt.

mod contestants;
mod interrupt;
mod loads;
mod machine;
mod plan;
mod report;
mod runner;
mod scratch;
mod stack;
mod stats;
mod units;
mod workloads;

pub use interrupt::{Interrupted, watch_signals};
pub use plan::{Group, Input, Length, Plan};
pub use report::{Cell, ContestantNote, LeftOut, Report, Row, Section};
pub use runner::{Silent, Watch, run};
pub use units::Unit;
