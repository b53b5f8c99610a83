// A file of its own, since the page's Content-Security-Policy takes no script inside the page.
SwaggerUIBundle({
  // Beside the page, wherever a proxy may have put both.
  url: new URL("../openapi.json", document.currentScript.src).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  // By default a public service is asked whether the document is valid.
  validatorUrl: null,
});
