import java.io.File;
import org.eclipse.jgit.api.CloneCommand;
import org.eclipse.jgit.api.Git;

/** Clone.java clone URL FOLDER [DEPTH] | fetch URL FOLDER: one session of JGit. */
public class Clone {
    public static void main(String[] arguments) throws Exception {
        File folder = new File(arguments[2]);
        if (arguments[0].equals("fetch")) {
            try (Git git = Git.open(folder)) {
                git.fetch().setRemote(arguments[1]).setRefSpecs("+refs/heads/*:refs/remotes/origin/*").call();
            }
            return;
        }
        CloneCommand clone = Git.cloneRepository().setURI(arguments[1]).setDirectory(folder);
        if (arguments.length > 3) {
            clone.setDepth(Integer.parseInt(arguments[3]));
        }
        clone.call().close();
    }
}
