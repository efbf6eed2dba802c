mod frames;
mod sessions;
mod world;
