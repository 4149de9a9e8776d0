// Package network gives every pod its network: one network namespace, wired by
// CNI plugins.
package network
