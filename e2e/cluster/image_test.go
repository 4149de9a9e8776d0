package cluster_test

import (
	"errors"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/micarun/mica/e2e/images"
	"github.com/micarun/mica/internal/testregistry"
)

// privateRegistry serves all images on the first node's loopback to clients with valid credentials.
// It returns the registry's address.
func (f *fixture) privateRegistry(auth testregistry.Auth) (*testregistry.Registry, string) {
	f.t.Helper()
	dir, err := images.Dir()
	if err != nil {
		f.t.Fatal(err)
	}
	listener, err := f.Nodes[0].Listen(f.ctx, "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	registry := testregistry.New(testregistry.Options{Dir: filepath.Join(dir, "registry"), Auth: auth})
	server := &http.Server{Handler: registry, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }() // Close ends it
	f.t.Cleanup(func() { _ = server.Close() })
	address := listener.Addr().String()
	if err := f.Nodes[0].UsePlainHTTP(address); err != nil {
		f.t.Fatal(err)
	}
	return registry, address
}

// waiting checks that the pod's container waits for the given reason, because pulling its image is
// not allowed.
func waiting(reason string) func(corev1.Pod) error {
	return func(pod corev1.Pod) error {
		c := pod.Status.ContainerStatuses
		if len(c) == 0 || c[0].State.Waiting == nil || c[0].State.Waiting.Reason != reason {
			return errors.New(status(pod))
		}
		return nil
	}
}

func TestImagePullSecret(t *testing.T) {
	f := start(t)
	for name, auth := range map[string]testregistry.Auth{
		"basic":  {Username: "me", Password: "sesame"},
		"bearer": {Username: "me", Password: "sesame", Bearer: true},
	} {
		_, address := f.privateRegistry(auth)
		spec := `
	nodeName: ` + f.Nodes[0].Name + `
	containers: [{name: main, image: "` + address + `/mica/busybox:latest", command: [sleep, infinity]}]
`
		f.pod(name+"-without", spec)
		f.awaitPod(name+"-without", waiting("ImagePullBackOff"))
		f.awaitEvent(name+"-without", "Failed", "Unauthenticated")

		f.kubectl("create", "secret", "docker-registry", name, "--docker-server="+address,
			"--docker-username=me", "--docker-password=sesame")
		f.pod(name, "\timagePullSecrets: [{name: "+name+"}]\n"+spec)
		f.awaitPod(name, ready)
	}
}

// A pod whose image cannot be pulled starts as soon as the pull succeeds.
func TestImagePullBackOff(t *testing.T) {
	f := start(t)
	registry, address := f.privateRegistry(testregistry.Auth{})
	registry.AddFault(testregistry.Fault{Kind: testregistry.Status, Code: http.StatusNotFound})
	f.pod("main", `
	nodeName: `+f.Nodes[0].Name+`
	containers: [{name: main, image: "`+address+`/mica/busybox:latest", command: [sleep, infinity]}]
`)
	f.awaitPod("main", waiting("ErrImagePull"))
	f.awaitPod("main", waiting("ImagePullBackOff"))
	f.awaitEvent("main", "Failed", "404 Not Found")
	registry.ClearFaults()
	pod := f.awaitPod("main", ready)
	if restarts := pod.Status.ContainerStatuses[0].RestartCount; restarts != 0 {
		t.Errorf("%d restarts", restarts)
	}
}

func TestBadImageNames(t *testing.T) {
	f := start(t)
	f.pod("never", `
	containers: [{name: main, image: "registry.test/never/pulled:latest", imagePullPolicy: Never}]
`)
	f.pod("invalid", `
	containers: [{name: main, image: "Not/A Name"}]
`)
	f.awaitPod("never", waiting("ErrImageNeverPull"))
	f.awaitPod("invalid", waiting("InvalidImageName"))
}
