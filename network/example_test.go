package network_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/netip"

	"github.com/micarun/mica/network"
)

// Attaches a pod with a host port to the default network and detaches it again. The pod's network
// namespace exists already. The program must run as root.
func Example() {
	ctx := context.Background()
	pods, err := network.Open(ctx, network.Options{
		ConfDir:  "/etc/cni/net.d",
		CacheDir: "/var/lib/mica/network",
		Default:  &network.DefaultNetwork{Subnet: netip.MustParsePrefix("10.88.0.0/16")},
	})
	if err != nil {
		log.Fatal(err)
	}

	pod := network.Pod{
		ID:   "web",
		Name: "web", Namespace: "default", UID: "6f0c",
		NetNS:        "/run/mica/pods/web/net",
		PortMappings: []network.PortMapping{{HostPort: 8080, ContainerPort: 80}},
	}
	result, err := pods.Add(ctx, pod)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("address", result.IPs[0])

	// The record of the attachment is enough to remove it, also after a restart.
	err = pods.Del(ctx, network.Pod{ID: pod.ID})
	if errors.Is(err, network.ErrPluginMissing) {
		log.Print("a later Del or GC removes the rest: ", err)
	} else if err != nil {
		log.Fatal(err)
	}
	if err := pods.Close(); err != nil {
		log.Fatal(err)
	}
}

// Lists what no pod needs. Only files are read, so the daemon may be stopped.
func ExampleOptions_Leftovers() {
	options := network.Options{
		ConfDir:  "/etc/cni/net.d",
		CacheDir: "/var/lib/mica/network",
		Default:  &network.DefaultNetwork{},
	}
	leftovers, err := options.Leftovers([]string{"web"})
	if err != nil {
		log.Fatal(err)
	}
	for _, l := range leftovers {
		fmt.Println(l.Path, l.What)
	}
}
