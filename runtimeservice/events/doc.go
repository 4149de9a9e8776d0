// Package events delivers container events to the subscribers of the CRI's GetContainerEvents.
//
// # Invariants
//
//   - A subscriber gets every event once, in the order of the [Broadcaster.Publish] calls.
//   - A subscriber that lags too far behind is disconnected and has to list again. It never misses an
//     event in between.
//   - Publish never waits for a subscriber.
//
// A restart of the daemon disconnects all subscribers. So the new daemon opens a gap: for one
// minute it keeps the events that it publishes and delivers them first to every new subscriber.
//
// The package does not know pods and containers, and keeps nothing on disk. The caller builds the
// events, and persists which ones reached nobody.
package events
