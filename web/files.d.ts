/** Files of packages that are served unchanged: an import `with { type: "file" }` gives the file's path. */
declare module "swagger-ui-dist/*" {
  const path: string;
  export default path;
}
