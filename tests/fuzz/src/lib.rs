//! What is fuzzed: the packet logic on the host must do with every frame what the oracle says.
//!
//! An input is a byte that names the router's bindings, one that says how the rest is read, and the
//! rest: either choices from which a random frame is made ([`natmig_fixtures::random`]), or the number of
//! the ingress interface and the frame itself.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use natmig_fixtures::{
    random::{self, Arrival, Dice, Scenario},
    world::PORTS,
};

thread_local! {
    static SCENARIOS: RefCell<HashMap<u8, Rc<Scenario>>> = RefCell::default();
}

/// The router that this number names.
fn scenario(number: u8) -> Rc<Scenario> {
    SCENARIOS.with_borrow_mut(|known| {
        let scenario = known.entry(number).or_insert_with(|| {
            let mut dice = Dice::seeded(number.into());
            Rc::new(Scenario::draw(&mut dice))
        });
        Rc::clone(scenario)
    })
}

/// Runs one input. The error says how the packet logic differs from the oracle.
pub fn run(input: &[u8]) -> Result<(), String> {
    let [number, how, rest @ ..] = input else {
        return Ok(());
    };
    let scenario = scenario(*number);
    let arrival = if how % 2 == 0 {
        random::arrival(&mut Dice::from_bytes(rest), &scenario)
    } else {
        let [port, frame @ ..] = rest else {
            return Ok(());
        };
        // Longer frames than this are not in one piece in the kernel either.
        if frame.len() > 3400 {
            return Ok(());
        }
        Arrival {
            ingress: PORTS[usize::from(*port) % PORTS.len()].ifindex,
            bytes: frame.to_vec(),
        }
    };
    scenario.check_host(&arrival).map(drop)
}
