// The compose specification's own loader on a file: compose FILE prints the project as JSON, or says what is wrong.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	folder := filepath.Dir(os.Args[1])
	options, err := cli.NewProjectOptions([]string{os.Args[1]}, cli.WithWorkingDirectory(folder), cli.WithResolvedPaths(true))
	if err == nil {
		project, failed := options.LoadProject(context.Background())
		if err = failed; err == nil {
			var text []byte
			if text, err = project.MarshalJSON(); err == nil {
				os.Stdout.Write(text)
				return
			}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
