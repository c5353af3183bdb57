//! The machine against a model of routers.

mod announced;
mod cases;
mod random;
mod world;
