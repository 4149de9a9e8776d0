// Package state holds the pods and containers of a node: what is known of them on disk and in
// memory. It starts no process, mounts nothing and knows no other component; that is the work of
// runtimeservice, which imports it.
//
// A pod or container has a record and a state. The record is written once, before the first side
// effect, and never changes. The state changes by copy → change → persist → swap, only in
// [Pod.Update] and [Container.Update]. Readers get copies.
//
// [Table] finds objects by ID, ID prefix and identity, and lets concurrent calls for one identity
// share one creation. [Lock] lets one operation at a time work on an object.
//
// # Invariants
//
//   - An object in memory has a record on disk, and its state there is at least as new as the one
//     in memory.
//   - The exit of a container is on stable storage before [Container.State] returns it.
//   - An incomplete or empty record belongs to an object that no client has seen.
//
// # On disk
//
//	DataDir/cri/pods/<id>/{record,state}.json
//	DataDir/cri/containers/<id>/{record,state}.json
//
// Both are written by rename, and only exits are flushed. CRI messages in them have the form of
// protojson. A field that a newer version has added is ignored by an older one. [Paths] has every
// directory of the service.
package state
