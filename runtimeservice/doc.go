// Package runtimeservice implements the CRI RuntimeService: the life cycle of pods and containers.
// Only the calls that return the URL of a streaming connection are elsewhere.
//
// Package state has the records and the states; here is the work on them, under one lock order.
//
// It is not a runtime itself. Images come from imageservice, root filesystems
// from overlay, namespaces from podns, addresses from network, cgroups from
// cgroup; processes are children of the keeper, which outlives this process. Package nri sends
// each step to NRI plugins, which can change some.
//
// # Life
//
// A pod or container is recorded before its first side effect. A failed creation, Stop, Remove
// and the recovery after a crash run the same idempotent tear-down, which reads only the record
// and the disk. Nothing here remembers which steps succeeded.
//
// The creation of an object has its own deadline, and continues if its caller gives up. A call for
// the same identity waits for it.
//
// # Invariants
//
//   - A creation adds its container to the table before it checks that the pod
//     is ready. A stop makes the pod not ready before it lists the containers.
//     So no container outlives the stop of its pod.
//   - The exit of a container is on stable storage before the keeper forgets it.
//   - Locks are taken in this order: a pod's op, a container's op, the pod's
//     initOp, a container's publishing, the mutex of a state.
//
// # On disk
//
//	DataDir/cri/pods/<id>/{record,state}.json
//	DataDir/cri/containers/<id>/{record,state}.json, volumes/<n>
//	DataDir/cri/containers/<id>/checkpoint (until a restored one is started)
//	DataDir/cri/checkpoints/<name>/job.json, and what is captured
//	DataDir/cri/discarded/<random> (records that were never complete; the sweep deletes them)
//	StateDir/pods/<id>/{net,ipc,uts,pid,shm,hostname,hosts,resolv.conf}
//	StateDir/containers/<id>/config.json (the OCI bundle)
//
// Records are written by rename. Only exits are flushed: a power cut that tears
// or loses a record has also ended the object's processes, and the sweep at the
// start removes the rest.
package runtimeservice
