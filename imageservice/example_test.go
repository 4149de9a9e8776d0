package imageservice_test

import (
	"context"
	"fmt"
	"log"

	"github.com/micarun/mica/imageservice"
	"github.com/micarun/mica/overlay"
)

// The service and the layer store share one data root. Extracting layers needs root.
func ExampleService_Pull() {
	ctx := context.Background()
	const root = "/var/lib/mica"
	layers, err := overlay.Open(ctx, overlay.Options{Root: root})
	if err != nil {
		log.Fatal(err)
	}
	images, err := imageservice.Open(ctx, imageservice.Options{Root: root}, layers)
	if err != nil {
		log.Fatal(err)
	}
	img, err := images.Pull(ctx, imageservice.PullArgs{Ref: "registry.example/team/app:v2"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(img.ID, img.Tags, img.Size)
	if err := images.Close(); err != nil {
		log.Fatal(err)
	}
	if err := layers.Close(); err != nil {
		log.Fatal(err)
	}
}
