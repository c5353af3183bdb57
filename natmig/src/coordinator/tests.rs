//! The machine against a model of routers.

mod announced;
mod cases;
mod queue;
mod random;
mod world;
