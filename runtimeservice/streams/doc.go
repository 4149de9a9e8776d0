// Package streams copies between the streams of a CRI client and those of a container or pod:
// attach sessions, forwarded ports, captured output and terminal sizes.
//
// # Invariants
//
//   - A client that does not read or has disconnected never blocks a goroutine for longer than its
//     connection exists.
//   - A function here returns only when everything is copied that can still be copied, or when its
//     context has ended.
//
// The package does not find containers, does not start processes and does not dial. Callers pass
// both ends, and close the client's.
//
// On disk there is only what a [Capture] keeps beyond 64 KiB, in a file without a name.
package streams
