// Package runtimeservice is the life cycle of pods and containers: the CRI
// RuntimeService, but for what goes over a streaming connection's URL.
//
// It is not a runtime itself. Images come from imageservice, root filesystems
// from overlay, namespaces from podns, addresses from network, cgroups from
// cgroup; processes are children of the keeper, which outlives this process. NRI
// plugins hear of each step, and change some, through nri.
//
// # Life
//
// A pod or container is recorded before its first side effect. Whatever ends
// it (a failed creation, Stop, Remove, a crash of this process found at the
// next start) runs the same idempotent tear-down, which reads only the record
// and the disk. Nothing here remembers which steps succeeded.
//
// A call that creates an object goes on under its own deadline when its
// caller gives up; a call for the same identity joins it.
//
// # Invariants
//
//   - An object in memory has a record on disk, and its state there is at
//     least as new as any answer to a client.
//   - A container is in the table before its pod is asked whether it is
//     ready, and a pod stops being ready before its containers are listed for
//     the stop. So no container outlives the stop of its pod.
//   - The exit of a container is on stable storage before its phase is Exited
//     for any caller, and before the keeper forgets it.
//
// # On disk
//
//	DataDir/cri/pods/<id>/{record,state}.json
//	DataDir/cri/containers/<id>/{record,state}.json, volumes/<n>
//	DataDir/cri/containers/<id>/checkpoint (until a restored one is started)
//	DataDir/cri/checkpoints/<name>/job.json, and what is captured
//	DataDir/cri/discarded/<random> (records that were never whole; the sweep deletes them)
//	StateDir/pods/<id>/{net,ipc,uts,pid,shm,hostname,hosts,resolv.conf}
//	StateDir/containers/<id>/config.json (the OCI bundle)
//
// Records are written by rename and, but for exits, not flushed: a record that
// a power cut tore or lost belongs to an object that no longer lives, and the
// sweep at start removes what it left.
package runtimeservice
