// Package nri lets plugins of the Node Resource Interface take part in the
// life of pods and containers: they are told of each step, may adjust a
// container before it is made, limit others, and evict them.
//
// The protocol and its transport are those of github.com/containerd/nri. This
// package turns requests and specifications into the protocol's messages and
// back, applies adjustments to the OCI specification, and keeps the order of
// what plugins are told. It makes and limits no container itself; for that it
// calls back its Runtime.
//
// # Invariants
//
//   - One event goes to the plugins at a time, and they are told of a pod
//     before its containers, of a container's creation before its start, stop
//     and removal, each once, and of all its containers' stops before a pod's.
//   - The package remembers what plugins were told. A plugin that joins is
//     told exactly that by Synchronize, and every event from then on: whatever
//     it was not told by the one it is told by the other.
//   - No plugin keeps a pod or container from ending: errors of stop and
//     removal events are logged.
//   - Each call of a plugin has a deadline. A plugin that misses it is
//     disconnected and the event goes on without it, unless the plugin has
//     asked for another failure policy.
//
// Nothing is on disk: after a restart, plugins are synchronized anew.
package nri
