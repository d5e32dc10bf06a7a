// Runs containerd's own snapshotter suite against `plyfs snapshotter`, one server and one store for each case.
package suite

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/errdefs"
	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/pkg/testutil"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"google.golang.org/grpc"
)

func TestPlyfs(t *testing.T) {
	testutil.RequiresRoot(t)
	testsuite.SnapshotterSuite(t, "Plyfs", start)
}

// A store that has an image commits its layers by itself when it is told which one is about to be unpacked.
func TestRemote(t *testing.T) {
	testutil.RequiresRoot(t)
	ctx := namespaces.WithNamespace(context.Background(), "testsuite")
	root := t.TempDir()
	plyfs := func(args ...string) []byte {
		out, err := exec.Command(os.Getenv("PLYFS"), append([]string{"--root", filepath.Join(root, "store")}, args...)...).Output()
		if err != nil {
			t.Fatalf("plyfs %v: %v", args, err)
		}
		return out
	}
	plyfs("load", "-q", os.Getenv("PLYFS_IMAGE"))
	id := strings.TrimSpace(string(plyfs("images", "-q", "--no-trunc")))
	var config struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	blob := filepath.Join(root, "store", "images", "configs", strings.TrimPrefix(id, "sha256:"))
	if text, err := os.ReadFile(blob); err != nil {
		t.Fatal(err)
	} else if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	snapshotter, end, err := start(ctx, root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	}()
	const ref = "containerd.io/snapshot.ref"
	parent := ""
	for i, chain := range identity.ChainIDs(config.RootFS.DiffIDs) {
		for again := 0; again < 2; again++ {
			key := fmt.Sprintf("extract-%d-%d", i, again)
			_, err := snapshotter.Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{ref: chain.String()}))
			if !errdefs.IsAlreadyExists(err) {
				t.Fatalf("layer %d: expected that it exists, got %v", i, err)
			}
		}
		// As containerd looks for it.
		var found []string
		filter := fmt.Sprintf(`labels."%s"==%s,parent==%q`, ref, chain, parent)
		if err := snapshotter.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			if info.Kind == snapshots.KindCommitted {
				found = append(found, info.Name)
			}
			return nil
		}, filter); err != nil || len(found) != 1 {
			t.Fatalf("layer %d: found %v, %v", i, found, err)
		}
		parent = found[0]
	}
	if parent == "" {
		t.Fatal("the image has no layers")
	}
	other := snapshots.WithLabels(map[string]string{ref: digest.FromString("no such chain").String()})
	if _, err := snapshotter.Prepare(ctx, "other", parent, other); err != nil {
		t.Fatalf("a layer that the store has not: %v", err)
	}
	mounts, err := snapshotter.View(ctx, "view", parent)
	if err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	if err := mount.All(mounts, target); err != nil {
		t.Fatal(err)
	}
	defer testutil.Unmount(t, target)
	if _, err := os.Stat(filepath.Join(target, "etc/passwd")); err != nil {
		t.Error(err)
	}
}

func start(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	socket := filepath.Join(root, "s")
	store := filepath.Join(root, "store")
	server := exec.Command(os.Getenv("PLYFS"), "--root", store, "snapshotter", "--address", socket, "--mounts", os.Getenv("PLYFS_MOUNTS"))
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		return nil, nil, err
	}
	for i := 0; i < 600; i++ {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	connection, err := grpc.Dial("unix://"+socket, grpc.WithInsecure())
	if err != nil {
		return nil, nil, err
	}
	snapshotter := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "plyfs")
	end := func() error {
		// What a case leaves is removed by the names that the server gives: children first.
		for {
			var names []string
			if err := snapshotter.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
				names = append(names, info.Name)
				return nil
			}); err != nil {
				return err
			}
			removed := 0
			for _, name := range names {
				if snapshotter.Remove(ctx, name) == nil {
					removed++
				}
			}
			if removed == 0 {
				if len(names) > 0 {
					return errors.New("snapshots are left that cannot be removed")
				}
				break
			}
		}
		connection.Close()
		if err := server.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		if err := server.Wait(); err != nil {
			return err
		}
		return mount.UnmountAll(root, 0)
	}
	return snapshotter, end, nil
}
