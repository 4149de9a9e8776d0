// Package cluster runs a Kubernetes cluster on Mica: etcd, the control plane and nodes of kubelet,
// kube-proxy and micad, all of them the real programs.
//
// A node is a pair of namespaces, for network and mounts, which a sleeping process keeps alive. The
// machine's own network is not affected. Settings that a kubelet makes for a whole machine
// (sysctls, links in /var/log) apply to its node only. The first node also has the control plane. A
// bridge in the first node's namespace connects the nodes. They reach each other's pods by static
// routes.
//
// The package is a separate module, so that the product depends only on Kubernetes' protocols. A
// further module in kubernetes/ has the versions of the Kubernetes programs in its go.mod. The two
// modules cannot be one, because the product uses a later release of the protocols.
//
// On-disk form, for a cluster NAME: /run/NAME has nodes.json, the processes that keep the
// namespaces, and a state directory for each node; /var/lib/NAME has certificates, logs, etcd's
// data and a directory for each node. Both are removed with the cluster. A cluster survives the
// process that started it, and Open finds it again.
package cluster
