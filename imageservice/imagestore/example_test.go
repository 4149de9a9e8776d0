package imagestore_test

import (
	"fmt"

	"github.com/micarun/mica/imageservice/imagestore"
)

func ExampleParseReference() {
	for _, s := range []string{"busybox", "registry.example:5000/team/app:v2", "Busybox"} {
		ref, err := imagestore.ParseReference(s)
		fmt.Println(ref, err != nil)
	}
	// Output:
	// docker.io/library/busybox:latest false
	// registry.example:5000/team/app:v2 false
	// <nil> true
}
