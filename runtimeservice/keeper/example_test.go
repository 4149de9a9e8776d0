package keeper_test

import (
	"context"
	"fmt"
	"log"

	"github.com/micarun/mica/runtimeservice/keeper"
)

// Runs one container with runc and waits for its exit. The bundle contains config.json and the root
// filesystem. The program must run as root.
func Example() {
	ctx := context.Background()
	client, err := keeper.Connect(ctx, keeper.Options{
		Dir:    "/run/mica/keeper",
		Binary: "/usr/bin/mica-keeper",
	})
	if err != nil {
		log.Fatal(err)
	}

	const id = "web"
	_, err = client.Create(ctx, keeper.CreateArgs{
		ID:      id,
		Runtime: []string{"/usr/sbin/runc", "--root", "/run/mica/runtimes/runc"},
		Bundle:  "/run/mica/containers/web",
		LogPath: "/var/log/pods/web/0.log",
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := client.Start(ctx, id); err != nil {
		log.Fatal(err)
	}
	// Exits of containers from before Connect are delivered too.
	for event := range client.Events() {
		if event.ID == id {
			fmt.Println("exit code", event.Exit.Code)
			break
		}
	}
	if err := client.Delete(ctx, id); err != nil {
		log.Fatal(err)
	}
	// Keeper and other containers continue to run.
	if err := client.Close(); err != nil {
		log.Fatal(err)
	}
}
