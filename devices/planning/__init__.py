"""What drawing takes on a device, before anything is opened: memory, arithmetic, time, and how to make it fit."""
