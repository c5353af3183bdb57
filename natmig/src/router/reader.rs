//! Read-only view of an instance's pinned maps; needs no daemon and no lock.
