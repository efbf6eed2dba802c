mod addresses;
mod frames;
mod held_relays;
mod relays;
mod sessions;
mod world;
