/** Files of packages that are served as they are: what an import `with { type: "file" }` gives is their path. */
declare module "swagger-ui-dist/*" {
  const path: string;
  export default path;
}
