//! The machine against a model of routers.

mod cases;
mod random;
mod world;
