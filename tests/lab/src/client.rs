//! What the lab asks natmig's command line, and what it reads from its JSON.

use serde::Deserialize;
