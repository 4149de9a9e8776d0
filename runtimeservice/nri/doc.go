// Package nri lets plugins of the Node Resource Interface (NRI) take part in the life cycle of pods
// and containers. Plugins get an event for each step. They can adjust a container before it is
// created, change the limits of other containers, and evict containers.
//
// The protocol and its transport are those of github.com/containerd/nri. This package converts
// requests and specifications to the protocol's messages and back, applies adjustments to the OCI
// specification, and keeps events in order. It does not create or limit containers itself; for that
// it calls its Runtime.
//
// # Invariants
//
//   - Plugins get one event at a time, and each event once. A pod's event comes before its
//     containers' events, a container's creation before its start, stop and removal, and the stops
//     of all containers before the pod's stop.
//   - The package remembers which pods and containers plugins know. A plugin that joins gets
//     exactly these by Synchronize, and every later event. It misses nothing between the two, and
//     gets nothing twice.
//   - A plugin cannot keep a pod or container from ending: errors of stop and removal events are
//     logged.
//   - Each call of a plugin has a deadline. A plugin that misses it is disconnected and the event
//     continues without it, unless the plugin has requested another failure policy.
//
// Nothing is stored on disk: after a restart, plugins are synchronized again.
package nri
