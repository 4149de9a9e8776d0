// Imagebox builds the test images and serves them on loopback.
//
//	imagebox build [-set basic|python|conformance|all]
//	imagebox serve [-addr 127.0.0.1:5055]
//
// Images, packages and the registry live in the user's cache directory, so a
// second build takes no time.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/micarun/mica/e2e/images"
	"github.com/micarun/mica/internal/testimage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "imagebox:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) error {
	if len(arguments) == 0 {
		return fmt.Errorf("usage: imagebox build|serve [flags]")
	}
	dir, err := images.Dir()
	if err != nil {
		return err
	}
	flags := flag.NewFlagSet(arguments[0], flag.ContinueOnError)
	flags.StringVar(&dir, "dir", dir, "directory of packages, layers and the registry")
	set := flags.String("set", "all", "images to build: basic, python, conformance or all")
	addr := flags.String("addr", "127.0.0.1:5055", "address to serve on; loopback only")
	if err := flags.Parse(arguments[1:]); err != nil {
		return err
	}
	switch arguments[0] {
	case "build":
		return build(ctx, dir, *set)
	case "serve":
		return serve(ctx, dir, *addr)
	}
	return fmt.Errorf("unknown command %q", arguments[0])
}

func build(ctx context.Context, dir, set string) error {
	sets := map[string][]testimage.Image{
		"basic":       images.Basic(),
		"python":      {images.Python()},
		"conformance": images.Conformance(),
	}
	for _, name := range []string{"basic", "python", "conformance"} {
		sets["all"] = append(sets["all"], sets[name]...)
	}
	list, ok := sets[set]
	if !ok {
		return fmt.Errorf("unknown set %q", set)
	}
	root, err := images.ModuleRoot()
	if err != nil {
		return err
	}
	return images.Build(ctx, dir, root, list, func(built testimage.Built) {
		var size int64
		for _, layer := range built.Layers {
			size += layer.Size
		}
		fmt.Printf("%s  %d layers, %.1f MB packed\n", built.Names[0], len(built.Layers), float64(size)/1e6)
	})
}

func serve(ctx context.Context, dir, addr string) error {
	server, err := images.Registry(dir).Start(addr)
	if err != nil {
		return err
	}
	fmt.Println("serving on", server.Addr)
	<-ctx.Done()
	return server.Close()
}
