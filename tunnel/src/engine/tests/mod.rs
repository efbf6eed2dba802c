mod frames;
mod relays;
mod sessions;
mod world;
