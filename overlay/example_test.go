package overlay_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/micarun/mica/overlay"
	"github.com/opencontainers/go-digest"
)

// Registers two layers of an image and mounts a writable layer on top of them. The program must run
// as root.
func Example() {
	ctx := context.Background()
	store, err := overlay.Open(ctx, overlay.Options{Root: "/var/lib/mica"})
	if err != nil {
		log.Fatal(err)
	}

	var top overlay.Layer
	for _, name := range []string{"base.tar", "app.tar"} {
		tar, err := os.Open(name)
		if err != nil {
			log.Fatal(err)
		}
		// A layer that exists already is not stored again. "" accepts any diff ID.
		if top, err = store.Register(ctx, top.ID, "", tar); err != nil {
			log.Fatal(err)
		}
		if err := tar.Close(); err != nil {
			log.Fatal(err)
		}
	}

	const id = "web"
	if _, err := store.Create(ctx, overlay.CreateArgs{ID: id, Parent: top.ID}); err != nil {
		log.Fatal(err)
	}
	path, err := store.Mount(ctx, overlay.MountArgs{ID: id})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("root file system at", path)

	// Remove also unmounts the layer.
	if err := store.Remove(ctx, id); err != nil {
		log.Fatal(err)
	}
	if err := store.Close(); err != nil {
		log.Fatal(err)
	}
}

// Removes the layers that neither an image nor a container uses.
func ExampleStore_SweepUnused() {
	ctx := context.Background()
	store, err := overlay.Open(ctx, overlay.Options{Root: "/var/lib/mica"})
	if err != nil {
		log.Fatal(err)
	}
	image, err := store.Layer("sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
	if err != nil {
		log.Fatal(err)
	}
	// The layers below a live layer stay as well.
	swept, err := store.SweepUnused(ctx, []digest.Digest{image.ID})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(swept.Layers), "layers,", swept.Bytes, "bytes")
	if err := store.Close(); err != nil {
		log.Fatal(err)
	}
}
