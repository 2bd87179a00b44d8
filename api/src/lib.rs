//! The object model of the Kubernetes API, pure: no I/O, no clock, no randomness.
//!
//! [`resource::RESOURCES`] is the table of built-in kinds; [`kinds`] holds what one kind does differently
//! from the others (defaulting, validation); [`facts`] what Kubernetes declares of each field.

pub mod apply;
pub mod cron;
pub mod exposition;
pub mod facts;
pub mod field;
pub mod fields;
pub mod json;
pub mod kinds;
pub mod labels;
pub mod meta;
pub mod names;
pub mod node_selector;
pub mod patch;
pub mod quantity;
pub mod quota;
pub mod resource;
pub mod status;
pub mod storage;
pub mod validate;
pub mod warnings;
