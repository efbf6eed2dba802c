//! What `farlan`, the program people type, is made of.

pub mod demo;
pub mod lab;
