//! (see ARCHITECTURE.md)

pub mod links;
pub mod netlink;
pub mod netns;
pub mod routes;
