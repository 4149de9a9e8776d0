// Package podns makes, pins and enters the kernel namespaces of a pod.
//
// A pod's net, ipc and uts namespaces exist without a process. Each is kept alive by its pin: a
// bind mount of its /proc file on a plain file in the pod's directory. The pins of a pod are
//
//	<dir>/net  <dir>/ipc  <dir>/uts  <dir>/user    made by Pin
//	<dir>/pid                                      made by the caller, removed by Unpin
//
// and an OCI runtime joins a namespace by the path of its pin.
//
// A user namespace has to exist before the namespaces that it owns. A child process makes it (see
// [UserNS]).
//
// The package does not set up networking: a network namespace made by Pin has only a loopback
// interface, which is up. It has no list of pods either: the directory is the only state.
//
// Invariants:
//
//   - The thread that enters a namespace ends afterwards, so no other code of the process runs in a
//     pod's namespace by accident. It is never the process's main thread, which the Go runtime
//     cannot end and which would keep the namespace alive as long as the process. A child process
//     with Pdeathsig is killed when the thread that started it ends. Start such a child from a
//     goroutine that is locked to its thread (runtime.LockOSThread) until the child has ended.
//   - Pin leaves either all requested pins or none.
//   - Unpin succeeds on every state of the directory that a crash can leave.
//
// A pin is visible in the mount namespace where it was made and in those that receive mounts from
// it. A process that was cloned into its own mount namespace while a pin existed (a container being
// created, a service with a private /tmp) holds a copy of the pin. A namespace exists until its
// last copy is unmounted. [Share] therefore makes the parent of the pod directories a shared mount,
// so that removing a pin also removes the copies.
package podns
