//! What the mounted tests, the suites and the model share.

pub mod model;
